#include "fathom/launch/supervisor.h"

#include <fcntl.h>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/hash.h"
#include "fathom/dist/socket.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kReportVariable[] = "FATHOM_RANKS_REPORT_FD";
// At most PIPE_BUF bytes, so that reports of several ranks never mix.
constexpr size_t kMaxMessage = 3800;

struct ReportHeader {
  int32_t rank, exit_code, length;
};

std::string random_secret() {
  unsigned char bytes[32];
  FATHOM_ASSERT(RAND_bytes(bytes, sizeof bytes) == 1);
  return sha256_hex(std::string_view(reinterpret_cast<const char*>(bytes), sizeof bytes));
}

/// A pipe whose ends are closed in the ranks, but for what set_inherited() names.
struct Pipe {
  dist::Socket read_end, write_end;
  Pipe() {
    int fds[2];
    FATHOM_CHECK(::pipe2(fds, O_CLOEXEC) == 0, "cannot make a pipe: ", std::strerror(errno));
    read_end = dist::Socket(fds[0]);
    write_end = dist::Socket(fds[1]);
    ::fcntl(fds[0], F_SETFL, O_NONBLOCK);
  }
};

void set_inherited(int fd) { ::fcntl(fd, F_SETFD, 0); }

void write_out(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t n = ::write(STDERR_FILENO, text.data() + at, text.size() - at);
    if (n < 0 && errno != EINTR) return;  // nobody reads it
    if (n > 0) at += static_cast<size_t>(n);
  }
}

/// What a rank prints on one pipe, passed on in whole lines.
struct Output {
  int rank;
  Pipe pipe;
  std::string partial;

  void pass_on() {
    char buffer[65536];
    ssize_t n = 0;
    while ((n = ::read(pipe.read_end.fd(), buffer, sizeof buffer)) > 0) {
      partial.append(buffer, static_cast<size_t>(n));
      std::string lines;
      for (size_t end; (end = partial.find('\n')) != std::string::npos; partial.erase(0, end + 1)) {
        lines += str_cat("[rank ", rank, "] ", partial.substr(0, end), "\n");
      }
      write_out(lines);
    }
    if (n == 0) pipe.read_end = dist::Socket();
  }
  void end() {
    if (!partial.empty()) write_out(str_cat("[rank ", rank, "] ", partial, "\n"));
  }
};

class Supervisor {
 public:
  explicit Supervisor(const SupervisorOptions& options) : options_(options) {
    sigemptyset(&signals_);
    for (int s : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&signals_, s);
    ::sigprocmask(SIG_BLOCK, &signals_, &old_signals_);
    signal_fd_ = dist::Socket(::signalfd(-1, &signals_, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  ~Supervisor() {
    kill_all(SIGKILL);
    for (const pid_t pid : pids_) {
      if (pid > 0) ::waitpid(pid, nullptr, 0);
    }
    ::sigprocmask(SIG_SETMASK, &old_signals_, nullptr);
  }

  int run() {
    const dist::Socket listener = dist::listen_on({"127.0.0.1", 0});
    const std::string secret = random_secret();
    for (int rank = 0; rank < options_.num_ranks; ++rank) start(rank, listener, secret);
    reports_.write_end = dist::Socket();
    while (num_left_ > 0) {
      wait_for_news();
      read_signals();
      for (auto& output : outputs_) output->pass_on();
      read_reports();
      end_the_others();
    }
    for (auto& output : outputs_) {
      output->pass_on();
      output->end();
    }
    read_reports();
    return conclude();
  }

 private:
  void start(int rank, const dist::Socket& listener, const std::string& secret) {
    Output* out = rank == 0 ? nullptr : outputs_.emplace_back(new Output{rank, {}, {}}).get();
    Output* err = outputs_.emplace_back(new Output{rank, {}, {}}).get();
    std::map<std::string, std::string> variables = options_.environment;
    variables["RANK"] = variables["LOCAL_RANK"] = std::to_string(rank);
    variables["WORLD_SIZE"] = variables["LOCAL_WORLD_SIZE"] = std::to_string(options_.num_ranks);
    variables["MASTER_ADDR"] = dist::local_address(listener).host;
    variables["MASTER_PORT"] = std::to_string(dist::local_address(listener).port);
    variables["FATHOM_RANKS_SECRET"] = secret;
    variables["FATHOM_RANKS_LISTEN_FD"] = std::to_string(listener.fd());
    variables[kReportVariable] = std::to_string(reports_.write_end.fd());
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    FATHOM_CHECK(pid >= 0, "cannot start rank ", rank, ": ", std::strerror(errno));
    if (pid > 0) {
      pids_.push_back(pid);
      ++num_left_;
      err->pipe.write_end = dist::Socket();
      if (out != nullptr) out->pipe.write_end = dist::Socket();
      return;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    ::sigprocmask(SIG_SETMASK, &old_signals_, nullptr);
    ::dup2(err->pipe.write_end.fd(), STDERR_FILENO);
    if (out != nullptr) ::dup2(out->pipe.write_end.fd(), STDOUT_FILENO);
    if (rank == 0) set_inherited(listener.fd());
    set_inherited(reports_.write_end.fd());
    for (const auto& [name, value] : variables) ::setenv(name.c_str(), value.c_str(), 1);
    std::vector<std::string> words = options_.arguments;
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execv(options_.program.c_str(), argv.data());
    ::_exit(127);
  }

  void wait_for_news() const {
    std::vector<pollfd> entries = {{signal_fd_.fd(), POLLIN, 0},
                                   {reports_.read_end.fd(), POLLIN, 0}};
    // A pipe that all its writers have closed would wake this loop for ever.
    if (reports_closed_) entries.pop_back();
    for (const auto& output : outputs_) {
      if (output->pipe.read_end.is_open()) {
        entries.push_back({output->pipe.read_end.fd(), POLLIN, 0});
      }
    }
    ::poll(entries.data(), entries.size(), 500);
  }

  void read_signals() {
    signalfd_siginfo info;
    while (::read(signal_fd_.fd(), &info, sizeof info) == sizeof info) {
      const int signal = static_cast<int>(info.ssi_signo);
      if (signal == SIGCHLD) continue;
      kill_all(stopped_by_ == 0 ? signal : SIGKILL);
      if (stopped_by_ == 0) stopped_by_ = signal;
    }
    for (size_t rank = 0; rank < pids_.size(); ++rank) {
      int status = 0;
      if (pids_[rank] < 0 || ::waitpid(pids_[rank], &status, WNOHANG) != pids_[rank]) continue;
      pids_[rank] = -1;
      --num_left_;
      note_end(static_cast<int>(rank), status);
    }
  }

  void note_end(int rank, int status) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    if (!failed_at_) failed_at_ = Clock::now();
    if (WIFSIGNALED(status) && !was_killed_by_us_ && stopped_by_ == 0 && killed_rank_ < 0) {
      killed_rank_ = rank;
      killing_signal_ = WTERMSIG(status);
    } else if (WIFEXITED(status) && silent_rank_ < 0) {
      silent_rank_ = rank;
      silent_code_ = WEXITSTATUS(status);
    }
  }

  void read_reports() {
    char buffer[4096];
    ssize_t n = 0;
    while ((n = ::read(reports_.read_end.fd(), buffer, sizeof buffer)) > 0) {
      report_bytes_.append(buffer, static_cast<size_t>(n));
    }
    reports_closed_ = n == 0;
  }

  std::optional<ReportHeader> first_report(std::string* message) const {
    ReportHeader header;
    if (report_bytes_.size() < sizeof header) return std::nullopt;
    std::memcpy(&header, report_bytes_.data(), sizeof header);
    *message = report_bytes_.substr(sizeof header, static_cast<size_t>(header.length));
    return header;
  }

  void end_the_others() {
    if (!failed_at_ || was_killed_by_us_) return;
    const std::chrono::duration<double> waited = Clock::now() - *failed_at_;
    if (waited.count() < options_.grace_seconds) return;
    was_killed_by_us_ = true;
    kill_all(SIGKILL);
  }

  void kill_all(int signal) const {
    for (const pid_t pid : pids_) {
      if (pid > 0) ::kill(pid, signal);
    }
  }

  /// The one message, and the exit code.
  int conclude() const {
    if (stopped_by_ != 0) {
      write_out(str_cat("stopped by ", ::strsignal(stopped_by_), "; all ", options_.num_ranks,
                        " ranks have ended\n"));
      return 128 + stopped_by_;
    }
    const std::string others =
        str_cat("; the ", options_.num_ranks, " ranks of this run have ended\n");
    if (killed_rank_ >= 0) {
      write_out(str_cat("error: rank ", killed_rank_, " was ended by signal ", killing_signal_,
                        " (", ::strsignal(killing_signal_), ")", others));
      return 1;
    }
    std::string message;
    if (const auto report = first_report(&message)) {
      write_out(str_cat("error: rank ", report->rank, ": ", message, "\n"));
      return report->exit_code;
    }
    if (silent_rank_ < 0) return 0;
    write_out(
        str_cat("error: rank ", silent_rank_, " ended with exit code ", silent_code_, others));
    return silent_code_;
  }

  const SupervisorOptions& options_;
  sigset_t signals_, old_signals_;
  dist::Socket signal_fd_;
  Pipe reports_;
  bool reports_closed_ = false;
  std::string report_bytes_;
  std::vector<std::unique_ptr<Output>> outputs_;
  std::vector<pid_t> pids_;  // by rank, -1: ended
  int num_left_ = 0;
  int stopped_by_ = 0;  // signal that this process got
  std::optional<Clock::time_point> failed_at_;
  bool was_killed_by_us_ = false;
  int killed_rank_ = -1, killing_signal_ = 0;
  int silent_rank_ = -1, silent_code_ = 0;
};

}  // namespace

std::vector<std::string> own_arguments() {
  std::vector<std::string> words;
  const std::string line = read_file("/proc/self/cmdline");
  for (size_t at = 0; at < line.size(); at += words.back().size() + 1) {
    words.emplace_back(line.c_str() + at);
  }
  return words;
}

int supervise_ranks(const SupervisorOptions& options) { return Supervisor(options).run(); }

bool report_to_supervisor(int exit_code, const std::string& message) {
  const char* fd = std::getenv(kReportVariable);
  const char* rank = std::getenv("RANK");
  if (fd == nullptr || rank == nullptr) return false;
  const std::string text = message.substr(0, kMaxMessage);
  const ReportHeader header = {std::atoi(rank), exit_code, static_cast<int32_t>(text.size())};
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
  bytes += text;
  return ::write(std::atoi(fd), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
}

}  // namespace fathom
