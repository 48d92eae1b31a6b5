#include "fathom/hub/local_layout.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/log.h"

namespace fathom::hub {
namespace {

constexpr char kNotes[] = ".cache/huggingface";

// The Python client's short name for a temporary file: base64, safe in URLs, of SHA-1.
std::string short_hash(const std::string& name) {
  unsigned char digest[SHA_DIGEST_LENGTH];
  SHA1(reinterpret_cast<const unsigned char*>(name.data()), name.size(), digest);
  unsigned char text[4 * ((SHA_DIGEST_LENGTH + 2) / 3) + 1];
  const int length = EVP_EncodeBlock(text, digest, SHA_DIGEST_LENGTH);
  std::string out(reinterpret_cast<char*>(text), static_cast<size_t>(length));
  std::replace(out.begin(), out.end(), '+', '-');
  std::replace(out.begin(), out.end(), '/', '_');
  return out;
}

double modification_time(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return -1;
  return static_cast<double>(info.st_mtim.tv_sec) +
         1e-9 * static_cast<double>(info.st_mtim.tv_nsec);
}

}  // namespace

LocalLayout::LocalLayout(const std::string& directory, const std::string& commit,
                         const CacheLayout* cache)
    : directory_(directory), commit_(commit), cache_(cache) {}

std::string LocalLayout::storage_path_of(const std::string& directory) {
  return join_path(directory, kNotes);
}

std::string LocalLayout::storage_path() const { return storage_path_of(directory_); }

void LocalLayout::prepare() {
  std::call_once(is_prepared_, [this] {
    make_directories(directory_);
    const std::string notes = make_directories_below(directory_, kNotes);
    write_cachedir_tag(notes);
    const std::string ignore = join_path(notes, ".gitignore");
    if (!file_exists(ignore)) write_file_atomic(ignore, "*");
  });
}

std::string LocalLayout::note_directory(const RepoFile& file) {
  prepare();
  return make_directories_below(directory_, str_cat(kNotes, "/download/", directory_of(file.path)));
}

std::optional<LocalLayout::Note> LocalLayout::read_note(const RepoFile& file) const {
  const std::string path = join_path(storage_path(), "download/" + file.path + ".metadata");
  if (!file_exists(path)) return std::nullopt;
  const std::string text = read_file(path);
  std::string lines[3];
  size_t at = 0;
  for (std::string& line : lines) {
    const size_t end = std::min(text.find('\n', at), text.size());
    line = text.substr(at, end - at);
    at = std::min(end + 1, text.size());
  }
  double time = 0;
  const auto [rest, error] =
      std::from_chars(lines[2].data(), lines[2].data() + lines[2].size(), time);
  // The file may have been changed after the note was made; clocks of file systems are coarse.
  const bool is_valid = error == std::errc() && is_commit(lines[0]) &&
                        modification_time(join_path(directory_, file.path)) - 1 <= time;
  if (!is_valid) return std::nullopt;
  return Note{lines[0], lines[1]};
}

void LocalLayout::write_note(const RepoFile& file, const std::string& etag) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  char time[40];
  std::snprintf(time, sizeof time, "%.6f", std::chrono::duration<double>(now).count());
  write_file_atomic(join_path(note_directory(file), base_name(file.path) + ".metadata"),
                    str_cat(commit_, "\n", etag, "\n", time, "\n"));
}

bool LocalLayout::has(const RepoFile& file) {
  const std::string path = join_path(directory_, file.path);
  if (regular_file_size(path) != file.size) return false;
  const auto note = read_note(file);
  if (note && note->commit == commit_) return true;
  std::string got;
  const bool is_right = note ? note->etag == file.etag() : has_promised_content(path, file, &got);
  if (is_right) write_note(file, file.etag());
  return is_right;
}

std::string LocalLayout::lock_path(const RepoFile& file, const std::string&) {
  return join_path(note_directory(file), base_name(file.path) + ".lock");
}

bool LocalLayout::adopt(const RepoFile& file, const std::string& etag) {
  if (has(file)) return true;
  const std::string cached = cache_ == nullptr ? "" : cache_->find(file);
  if (cached.empty()) return false;
  const std::string directory = make_directories_below(directory_, directory_of(file.path));
  AtomicFileWriter writer(join_path(directory, base_name(file.path)));
  if (file.size > 0) {
    const MappedFile source(cached);
    writer.write(source.data(), source.size());
  }
  writer.finish();
  write_note(file, etag);
  return true;
}

std::string LocalLayout::partial_stem(const RepoFile& file, const std::string& etag) {
  return join_path(note_directory(file),
                   short_hash(base_name(file.path) + ".metadata") + "." + etag);
}

void LocalLayout::publish(const RepoFile& file, const std::string& etag, PartialFile* partial) {
  const std::string directory = make_directories_below(directory_, directory_of(file.path));
  partial->publish(join_path(directory, base_name(file.path)));
  write_note(file, etag);
}

}  // namespace fathom::hub
