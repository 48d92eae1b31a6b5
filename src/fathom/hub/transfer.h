// Fetches files: several at a time, large ones in several ranges at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fathom/hub/api.h"
#include "fathom/hub/destination.h"

namespace fathom::hub {

struct TransferProgress {
  int64_t bytes_done = 0, bytes_total = 0;
  int64_t files_done = 0, files_total = 0;
};

/// One use: construct, run. A file appears at its destination when its content is whole and has the
/// hash that the listing promises; what arrived of others is kept for the next time.
class Transfer {
 public:
  /// @param settings, repo, commit, destination outlive this.
  Transfer(const HubSettings& settings, const Repo& repo, const std::string& commit,
           Destination* destination);
  ~Transfer();

  /// @param report called on this thread every fifth of a second and at the end.
  /// Errors: HubUnreachable, HubRefusal; UserError for content that is not what was promised, a
  /// full disk, an answer that breaks the protocol. The first error ends the others' work.
  void run(const std::vector<RepoFile>& files,
           const std::function<void(const TransferProgress&)>& report);

  int64_t bytes_received() const { return bytes_received_; }

 private:
  struct Job;
  struct Segment;
  using Task = std::function<void(HubApi&)>;

  void work();
  void push(Task task);
  void start(const std::shared_ptr<Job>& job, HubApi& api);
  bool take_lock(const std::shared_ptr<Job>& job);
  void push_segments(const std::shared_ptr<Job>& job);
  void fetch(const std::shared_ptr<Job>& job, int64_t begin, int64_t end, HubApi& api);
  bool check_answer(Segment& segment, const HttpResponse& head);
  bool take_piece(Segment& segment, const HttpResponse& head, std::string_view bytes);
  bool claim_whole(Segment& segment);
  void settle(Segment& segment, const HttpResponse& response, HubApi& api);
  void refresh_location(Segment& segment, HubApi& api);
  void finish(const std::shared_ptr<Job>& job);
  void complete(const std::shared_ptr<Job>& job);

  const HubSettings& settings_;
  const Repo& repo_;
  const std::string& commit_;
  Destination* destination_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  int num_running_ = 0;
  std::exception_ptr error_;
  std::atomic<bool> stop_ = false;
  std::atomic<int64_t> bytes_done_ = 0, files_done_ = 0, bytes_received_ = 0;
};

}  // namespace fathom::hub
