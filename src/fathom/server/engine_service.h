// The engine behind a queue: one thread owns it and steps, every other thread only leaves messages.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "fathom/rollout/engine.h"
#include "fathom/server/engine_metrics.h"

namespace fathom {

/// A finished sample, and what the engine does not know of it.
struct Answer {
  Completion completion;
  std::string weight_version;  // the name that was given to the weights
  /// Where the weights changed under way: each name with its number of tokens.
  std::vector<std::pair<std::string, int64_t>> weight_versions;
  double seconds = 0;         // since the job was submitted
  std::string abort_message;  // why it was aborted, if it was
};

/// Told how a job goes, on the engine's thread: to be quick, and to call nothing of the service.
class JobListener {
 public:
  virtual ~JobListener() = default;
  /// After each token that did not end its sample, if the job wants to know.
  virtual void on_token(int64_t item, const Completion& so_far) = 0;
  /// Once for every sample.
  virtual void on_answer(int64_t item, Answer answer) = 0;
  /// In place of all samples that have no answer yet. Status as in HTTP.
  virtual void on_failure(int64_t item, int status, const std::string& message) = 0;
};

struct Job {
  std::string rid;   // unique among unfinished jobs
  int64_t item = 0;  // handed back to the listener
  Request request;
  bool wants_tokens = false;
  int64_t stream_interval = 0;  // tokens of a sample from one word of them to the next; 0: Options'
  std::shared_ptr<JobListener> listener;
};

class EngineService {
 public:
  struct Options {
    int64_t max_running_requests = 64;   // of the engine, for the count of what waits
    int64_t max_queued_requests = 1024;  // samples that may wait for the engine
    int64_t stream_interval = 1;         // of jobs that do not say
  };
  /// Makes the engine that calls `on_token`.
  using MakeEngine = std::function<std::unique_ptr<Engine>(OnToken on_token)>;

  EngineService(const MakeEngine& make_engine, const Options& options, EngineMetrics& metrics);
  ~EngineService();
  /// Fails what is unfinished and lets go of all listeners. Called by the destructor.
  void stop();

  /// Queues all of the jobs or none.
  /// Errors: HttpError 503 when too much waits or the engine is lost, 400 for a rid that is taken.
  void submit(std::vector<Job> jobs);

  /// Ends jobs; their samples are answered with what they have. Returns at once.
  void abort(std::string rid, std::string message);
  void abort_prefix(std::string rid_prefix, std::string message);  // an empty one ends all

  // They return when they have taken effect. Errors: HttpError 503 when the engine is lost.
  void pause(PauseMode mode);
  void resume();
  bool is_paused() const;

  /// Runs `work` on the engine's thread between two steps, and waits for it. Errors of `work`, and
  /// HttpError 503 when the engine is lost.
  void run(const std::function<void(Engine&)>& work);

  /// As run(). @return false, with nothing done, while unfinished requests hold states: all do, but
  /// those that a pause has retracted.
  bool run_without_states(const std::function<void(Engine&)>& work);

  /// No steps while true. To be called inside of run().
  void hold(bool is_held) { is_held_ = is_held; }

  /// Runs `change` while no request holds a state (with abort_all they are aborted first, else
  /// false is returned), then gives the weights a name. Answers carry the name they were made
  /// under.
  bool change_weights(const std::string& version, bool abort_all,
                      const std::function<void()>& change);
  std::string weight_version() const;

  struct Load {
    int64_t num_running = 0, num_waiting = 0;  // samples, and prompts under way
    int64_t num_unfinished = 0;                // samples submitted and not answered
    TokenUsage tokens;
    int64_t used_bytes = 0, budget_bytes = 0;  // of states and cached prefixes; budget 0: no limit
    int64_t page_size = 0;                     // tokens
    EngineCounters counters;
  };
  Load load() const;
  /// Why the engine is lost; empty while it works.
  std::string failure() const;
  /// When a token or an answer came last.
  std::chrono::steady_clock::time_point last_output() const { return last_output_; }
  /// A rid that no client has.
  std::string new_rid();

 private:
  using Clock = std::chrono::steady_clock;
  struct Running {
    Job job;
    int64_t num_left = 0;
    Clock::time_point submitted;
    Clock::time_point started;  // its first step; zero: it waits
    struct Tokens {
      Clock::time_point first, last;  // zero: none yet
    };
    std::vector<Tokens> tokens;  // of each sample
    std::string abort_message;
  };

  bool post(std::function<void()> command);  // false: nobody is left to run it
  void work();
  bool take_commands(bool wait);
  void start(Job job, Clock::time_point submitted);
  void note_token(const Completion& so_far);
  void deliver(Completion completion);
  void finish(int64_t id);
  void fail_all(int status, const std::string& message);
  void abort_matching(const std::function<bool(const std::string& rid)>& matches,
                      const std::string& message);
  void note_started(Running* running);
  void note_time_of_token(Running* running, int64_t sample);
  void publish();

  Options options_;
  EngineMetrics& metrics_;
  std::unique_ptr<Engine> engine_;  // the engine's thread, once it runs

  // The engine's thread.
  std::map<int64_t, Running> running_;  // by engine id
  std::map<int64_t, std::string> version_names_;
  bool is_held_ = false, is_retracted_ = false;
  Clock::time_point step_begin_, rate_begin_, published_;
  int64_t rate_tokens_ = 0, rate_preemptions_ = 0;

  std::atomic<Clock::time_point> last_output_{};

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> commands_;
  std::set<std::string> rids_;
  Load load_;
  std::string version_ = "default", failure_;
  bool is_paused_ = false, is_stopping_ = false, has_stopped_ = false;
  uint64_t next_rid_ = 0;

  std::thread thread_;
};

}  // namespace fathom
