#include "fathom/checkpoint/spmd_group.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {
namespace {

constexpr auto kPause = std::chrono::milliseconds(50);
constexpr int kPausesPerBeat = 20;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Small files that nobody needs after a crash: no flush.
bool put_text(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new";
  std::ofstream out(temporary, std::ios::trunc);
  out << text;
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(temporary, path, error);
  return out && !error;
}

std::string get_text(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

int64_t modified(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return -1;
  return info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

SpmdGroup::SpmdGroup(std::string directory, ProcessPlace place, double patience_seconds)
    : directory_(std::move(directory)),
      place_(place),
      patience_seconds_(patience_seconds),
      peers_(static_cast<size_t>(place.size)) {
  if (place_.size == 1) return;
  const bool has_made = place_.rank == 0;
  make_directories(has_made ? directory_ : parent_path(directory_));
  const bool has_written = put_text(file("alive", place_.rank), "0 0");
  // Who comes before rank 0 has nowhere to write yet, and must not wait where it never will have.
  const bool may_write = has_written || (!has_made && !directory_exists(directory_) &&
                                         ::access(parent_path(directory_).c_str(), W_OK) == 0);
  FATHOM_CHECK(may_write, "cannot write into ", directory_, ": ", std::strerror(errno),
               "\n  fix: choose a directory that you may write to");
  // Where there is no directory yet, nothing in it will be of an earlier run.
  started_ = std::max<int64_t>(0, modified(file("alive", place_.rank)));
  for (Peer& peer : peers_) peer.heard_at = now_seconds();
  thread_ = std::thread([this] { beat(); });
}

SpmdGroup::~SpmdGroup() {
  is_stopping_.store(true);
  if (thread_.joinable()) thread_.join();
}

std::string SpmdGroup::file(const char* what, int64_t rank) const {
  return join_path(directory_, str_cat(what, ".", rank));
}

void SpmdGroup::pause() { std::this_thread::sleep_for(kPause); }

void SpmdGroup::open_gate() {
  if (place_.size == 1) return;
  FATHOM_CHECK(put_text(file("gate", 0), str_cat("open to ", place_.job)), "cannot write into ",
               directory_);
}

bool SpmdGroup::is_gate_open() const {
  return get_text(file("gate", 0)) == str_cat("open to ", place_.job);
}

void SpmdGroup::beat() {
  for (int64_t count = 1; !is_stopping_.load(); ++count) {
    put_text(file("alive", place_.rank), str_cat(count, " ", bytes_.load()));
    look_at_others();
    for (int i = 0; i < kPausesPerBeat && !is_stopping_.load(); ++i) pause();
  }
}

void SpmdGroup::look_at_others() {
  int64_t bytes = 0;
  const double now = now_seconds();
  for (int64_t rank = 0; rank < place_.size; ++rank) {
    if (rank == place_.rank || has_problem_.load()) continue;
    // What an earlier run left is older than this process.
    if (modified(file("failed", rank)) >= started_) {
      problem_ = str_cat("rank ", rank, " failed: ", get_text(file("failed", rank)));
      has_problem_.store(true);
      return;
    }
    Peer& peer = peers_[static_cast<size_t>(rank)];
    const std::string text = get_text(file("alive", rank));
    if (text != peer.last) {
      peer.last = text;
      peer.heard_at = now;
    }
    if (const size_t space = text.find(' '); space != std::string::npos) {
      bytes += std::strtoll(text.c_str() + space, nullptr, 10);
    }
    if (now - peer.heard_at > patience_seconds_) {
      problem_ = str_cat("rank ", rank, " of ", place_.size, " has given no sign for ",
                         static_cast<int64_t>(patience_seconds_), " seconds",
                         "\n  fix: start all ranks, on machines that share ", directory_,
                         "; finished files are kept");
      has_problem_.store(true);
      return;
    }
  }
  bytes_of_others_.store(bytes);
}

void SpmdGroup::check_others() const {
  if (has_problem_.load()) throw UserError(problem_);
}

void SpmdGroup::fail(const std::string& message) {
  if (place_.size == 1) return;
  std::error_code ignored;
  if (place_.rank == 0) std::filesystem::remove(file("gate", 0), ignored);
  if (!has_problem_.load()) put_text(file("failed", place_.rank), message);
}

void SpmdGroup::finish() {
  is_stopping_.store(true);
  if (thread_.joinable()) thread_.join();
  // There may be one of an earlier run with more processes. Under another name at once: from here
  // on the others' signs of life go nowhere.
  std::error_code error;
  const std::string gone = directory_ + ".partial";
  std::filesystem::rename(directory_, gone, error);
  if (error) return;
  // A sign that was on its way may still come to lie in it.
  for (int i = 0; i < kPausesPerBeat && directory_exists(gone); ++i) {
    if (i > 0) pause();
    std::filesystem::remove_all(gone, error);
  }
}

}  // namespace fathom
