#include "fathom/hub/destination.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom::hub {

std::string make_directories_below(const std::string& root, const std::string& relative) {
  std::string path = root;
  for (size_t begin = 0; begin < relative.size();) {
    const size_t end = std::min(relative.find('/', begin), relative.size());
    if (end > begin) {
      path = join_path(path, relative.substr(begin, end - begin));
      struct stat info {};
      if (::lstat(path.c_str(), &info) == 0) {
        FATHOM_CHECK(S_ISDIR(info.st_mode), path, " is ",
                     S_ISLNK(info.st_mode) ? "a symbolic link" : "no directory",
                     "; files of a repository are not written through it\n  fix: remove it");
      } else if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) {
        throw UserError(str_cat("cannot make the directory ", path, ": ", std::strerror(errno)));
      }
    }
    begin = end + 1;
  }
  return path;
}

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

void write_cachedir_tag(const std::string& directory) {
  const std::string path = join_path(directory, "CACHEDIR.TAG");
  if (file_exists(path)) return;
  write_file_atomic(path,
                    "Signature: 8a477f597d28d172789f06886806bc55\n"
                    "# Written by fathom: what lies here can be downloaded again.\n");
}

int64_t regular_file_size(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) ? info.st_size : -1;
}

}  // namespace fathom::hub
