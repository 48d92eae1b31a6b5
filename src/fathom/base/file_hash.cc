#include "fathom/base/file_hash.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "fathom/base/error.h"

namespace fathom {
namespace {

struct Descriptor {
  explicit Descriptor(const std::string& path) : fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    FATHOM_CHECK(fd >= 0, "cannot open ", path, ": ", std::strerror(errno));
  }
  ~Descriptor() { ::close(fd); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd;
};

std::string digest_file(const std::string& path, const EVP_MD* kind, bool with_git_header) {
  const Descriptor file(path);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  bool is_good = context != nullptr && EVP_DigestInit_ex(context.get(), kind, nullptr) == 1;
  if (with_git_header) {
    struct stat info {};
    FATHOM_CHECK(::fstat(file.fd, &info) == 0, "cannot read ", path, ": ", std::strerror(errno));
    const std::string header = str_cat("blob ", info.st_size);
    is_good = is_good && EVP_DigestUpdate(context.get(), header.c_str(), header.size() + 1) == 1;
  }
  std::vector<char> buffer(size_t{1} << 20);
  for (;;) {
    const ssize_t n = ::read(file.fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    FATHOM_CHECK(n >= 0, "cannot read ", path, ": ", std::strerror(errno));
    if (n == 0) break;
    is_good =
        is_good && EVP_DigestUpdate(context.get(), buffer.data(), static_cast<size_t>(n)) == 1;
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  is_good = is_good && EVP_DigestFinal_ex(context.get(), digest, &length) == 1;
  FATHOM_CHECK(is_good, "this build's OpenSSL cannot hash ", path);
  static constexpr char kHex[] = "0123456789abcdef";
  std::string hex;
  for (unsigned i = 0; i < length; ++i) {
    hex += kHex[digest[i] >> 4];
    hex += kHex[digest[i] & 15];
  }
  return hex;
}

}  // namespace

std::string file_sha256(const std::string& path) {
  return digest_file(path, EVP_sha256(), /*with_git_header=*/false);
}

std::string file_git_sha1(const std::string& path) {
  return digest_file(path, EVP_sha1(), /*with_git_header=*/true);
}

}  // namespace fathom
