#include "fathom/server/engine_service.h"

#include <algorithm>
#include <exception>
#include <future>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/server/http.h"

namespace fathom {
namespace {

double seconds_between(std::chrono::steady_clock::time_point a,
                       std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

bool any_rid(const std::string&) { return true; }

int64_t num_samples(const Job& job) { return static_cast<int64_t>(job.request.seeds.size()); }

}  // namespace

EngineService::EngineService(const MakeEngine& make_engine, const Options& options,
                             EngineMetrics& metrics)
    : options_(options), metrics_(metrics), rate_begin_(Clock::now()) {
  engine_ = make_engine([this](const Completion& so_far) { note_token(so_far); });
  version_names_[engine_->weight_version()] = version_;
  metrics_.max_running.set(static_cast<double>(options.max_running_requests));
  thread_ = std::thread([this] { work(); });
}

EngineService::~EngineService() { stop(); }

void EngineService::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool EngineService::post(std::function<void()> command) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (has_stopped_) return false;
    commands_.push_back(std::move(command));
  }
  wake_.notify_all();
  return true;
}

void EngineService::submit(std::vector<Job> jobs) {
  const Clock::time_point now = Clock::now();
  int64_t num_new = 0;
  for (const Job& job : jobs) num_new += num_samples(job);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_.empty()) throw HttpError(503, "the engine has failed: " + failure_);
    if (is_stopping_) throw HttpError(503, "the server is shutting down");
    const int64_t limit = options_.max_running_requests + options_.max_queued_requests;
    if (load_.num_unfinished + num_new > limit) {
      throw HttpError(503, str_cat("The request queue is full: ", load_.num_unfinished,
                                   " answers are unfinished, ", num_new, " more would pass ", limit,
                                   ". Try again later."));
    }
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (rids_.insert(jobs[i].rid).second) continue;
      const std::string taken = jobs[i].rid;
      for (size_t j = 0; j < i; ++j) rids_.erase(jobs[j].rid);
      throw HttpError(400, str_cat("'", taken.substr(0, 100), "' belongs to an unfinished request"),
                      "rid");
    }
    load_.num_unfinished += num_new;
    for (Job& job : jobs) {
      commands_.push_back([this, now, job = std::make_shared<Job>(std::move(job))] {
        start(std::move(*job), now);
      });
    }
  }
  wake_.notify_all();
}

void EngineService::start(Job job, Clock::time_point submitted) {
  int64_t id = 0;
  Running running;
  try {
    if (engine_ == nullptr) throw InternalError("the engine is lost");
    Request request = job.request;
    id = engine_->submit(std::move(request));
  } catch (const Error& e) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      rids_.erase(job.rid);
      load_.num_unfinished -= num_samples(job);
    }
    job.listener->on_failure(job.item, dynamic_cast<const UserError*>(&e) != nullptr ? 400 : 500,
                             e.what());
    return;
  }
  metrics_.prompt_length.observe(static_cast<double>(job.request.prompt_ids.size()));
  running.num_left = num_samples(job);
  running.submitted = submitted;
  running.tokens.resize(job.request.seeds.size());
  running.job = std::move(job);
  running_.emplace(id, std::move(running));
}

void EngineService::abort(std::string rid, std::string message) {
  post([this, rid = std::move(rid), message = std::move(message)] {
    abort_matching([&](const std::string& other) { return other == rid; }, message);
  });
}

void EngineService::abort_prefix(std::string rid_prefix, std::string message) {
  post([this, prefix = std::move(rid_prefix), message = std::move(message)] {
    abort_matching([&](const std::string& other) { return other.starts_with(prefix); }, message);
  });
}

void EngineService::abort_matching(const std::function<bool(const std::string& rid)>& matches,
                                   const std::string& message) {
  if (engine_ == nullptr) return;
  std::vector<int64_t> ids;
  for (auto& [id, running] : running_) {
    if (!matches(running.job.rid)) continue;
    running.abort_message = message;
    ids.push_back(id);
  }
  for (const int64_t id : ids) engine_->abort(id);
}

void EngineService::run(const std::function<void(Engine&)>& work) {
  std::promise<void> done;
  std::future<void> result = done.get_future();
  const bool is_posted = post([&] {
    try {
      if (engine_ == nullptr) throw HttpError(503, "the engine is lost");
      work(*engine_);
      done.set_value();
    } catch (...) {
      done.set_exception(std::current_exception());
    }
  });
  if (!is_posted) throw HttpError(503, "the server is shutting down");
  result.get();
}

void EngineService::pause(PauseMode mode) {
  run([&](Engine& engine) {
    if (mode == PauseMode::kAbort) abort_matching(any_rid, "Generation was paused");
    engine.pause(mode);
    is_retracted_ = is_retracted_ || mode == PauseMode::kRetract;
    const std::lock_guard<std::mutex> lock(mutex_);
    is_paused_ = true;
  });
}

void EngineService::resume() {
  run([&](Engine& engine) {
    engine.resume();
    is_retracted_ = false;
    const std::lock_guard<std::mutex> lock(mutex_);
    is_paused_ = false;
  });
}

bool EngineService::is_paused() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return is_paused_;
}

bool EngineService::run_without_states(const std::function<void(Engine&)>& work) {
  bool is_done = false;
  run([&](Engine& engine) {
    if (!running_.empty() && !is_retracted_) return;
    work(engine);
    is_done = true;
  });
  return is_done;
}

bool EngineService::change_weights(const std::string& version, bool abort_all,
                                   const std::function<void()>& change) {
  bool is_done = false;
  run([&](Engine& engine) {
    if (abort_all) {
      abort_matching(any_rid, "The weights were changed");
      for (Completion& completion : engine.take_completions()) deliver(std::move(completion));
    }
    if (!running_.empty() && !is_retracted_) return;
    change();
    const int64_t number = engine.weight_version() + 1;
    engine.set_weight_version(number);
    version_names_[number] = version;
    const std::lock_guard<std::mutex> lock(mutex_);
    version_ = version;
    is_done = true;
  });
  return is_done;
}

std::string EngineService::weight_version() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return version_;
}

EngineService::Load EngineService::load() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return load_;
}

std::string EngineService::failure() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

std::string EngineService::new_rid() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return str_cat("fathom-", next_rid_++);
}

bool EngineService::take_commands(bool wait) {
  std::deque<std::function<void()>> commands;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    // The time-out keeps the published rates true while nothing happens.
    if (wait) {
      wake_.wait_for(lock, std::chrono::seconds(1),
                     [&] { return !commands_.empty() || is_stopping_; });
    }
    commands.swap(commands_);
    if (is_stopping_ && commands.empty()) return false;
  }
  for (const std::function<void()>& command : commands) command();
  return true;
}

void EngineService::work() {
  bool can_step = false;
  while (take_commands(!can_step)) {
    can_step = false;
    try {
      step_begin_ = Clock::now();
      if (engine_ != nullptr && !is_held_) can_step = engine_->step();
    } catch (const std::exception& e) {
      log_warning("engine: ", e.what());
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        failure_ = e.what();
      }
      fail_all(500, str_cat("the engine has failed: ", e.what()));
      engine_.reset();
    }
    if (engine_ != nullptr) {
      for (const Work& work : engine_->scheduler().running()) {
        const auto found = running_.find(work.group->id);
        if (found != running_.end()) note_started(&found->second);
      }
      for (Completion& completion : engine_->take_completions()) deliver(std::move(completion));
    }
    publish();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_stopping_) break;
  }
  fail_all(503, "the server is shutting down");
  std::deque<std::function<void()>> last;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    has_stopped_ = true;
    last.swap(commands_);
  }
  for (const std::function<void()>& command : last) command();  // somebody may wait for them
  fail_all(503, "the server is shutting down");
}

void EngineService::note_started(Running* running) {
  if (running->started != Clock::time_point()) return;
  running->started = std::max(running->submitted, step_begin_);
  const double waited = seconds_between(running->submitted, running->started);
  metrics_.queue_time.observe(waited);
  metrics_.waiting_stage.observe(waited);
}

void EngineService::note_time_of_token(Running* running, int64_t sample) {
  const Clock::time_point now = Clock::now();
  Running::Tokens& times = running->tokens[static_cast<size_t>(sample)];
  if (times.first == Clock::time_point()) {
    note_started(running);
    metrics_.time_to_first_token.observe(seconds_between(running->submitted, now));
    metrics_.prefill_stage.observe(seconds_between(running->started, now));
    times.first = now;
  } else {
    metrics_.inter_token_latency.observe(seconds_between(times.last, now));
  }
  times.last = now;
  ++rate_tokens_;
}

void EngineService::note_token(const Completion& so_far) {
  const auto found = running_.find(so_far.request_id);
  if (found == running_.end()) return;
  Running& running = found->second;
  note_time_of_token(&running, so_far.sample);
  last_output_ = Clock::now();
  const Job& job = running.job;
  if (!job.wants_tokens) return;
  const auto count = static_cast<int64_t>(so_far.token_ids.size());
  const int64_t every = job.stream_interval > 0 ? job.stream_interval : options_.stream_interval;
  if (count == 1 || count % every == 0) job.listener->on_token(job.item, so_far);
}

void EngineService::deliver(Completion completion) {
  const auto found = running_.find(completion.request_id);
  if (found == running_.end()) return;
  Running& running = found->second;
  const Clock::time_point now = Clock::now();
  const double num_tokens = static_cast<double>(completion.token_ids.size());
  if (completion.finish_reason != FinishReason::kAbort && num_tokens > 0) {
    note_time_of_token(&running, completion.sample);
    const Clock::time_point first = running.tokens[static_cast<size_t>(completion.sample)].first;
    metrics_.decode_stage.observe(seconds_between(first, now));
  }
  metrics_.generation_tokens.add(num_tokens);
  metrics_.generation_length.observe(num_tokens);
  Answer answer;
  answer.seconds = seconds_between(running.submitted, now);
  metrics_.e2e_latency.observe(answer.seconds);
  answer.weight_version = version_names_[completion.weight_version];
  for (const auto& [version, count] : completion.weight_versions) {
    answer.weight_versions.emplace_back(version_names_[version], count);
  }
  const bool is_aborted = completion.finish_reason == FinishReason::kAbort;
  if (is_aborted) answer.abort_message = running.abort_message;
  const int64_t id = completion.request_id;
  answer.completion = std::move(completion);
  const std::shared_ptr<JobListener> listener = running.job.listener;
  const int64_t item = running.job.item;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    --load_.num_unfinished;
  }
  last_output_ = now;
  if (--running.num_left == 0) {
    metrics_.num_requests.add(1);
    metrics_.prompt_tokens.add(static_cast<double>(running.job.request.prompt_ids.size()));
    if (is_aborted) metrics_.num_aborted_requests.add(1);
    finish(id);
  }
  // Last, so that whoever has the answer finds the engine without the request.
  listener->on_answer(item, std::move(answer));
}

void EngineService::finish(int64_t id) {
  const auto found = running_.find(id);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    rids_.erase(found->second.job.rid);
  }
  running_.erase(found);
}

void EngineService::fail_all(int status, const std::string& message) {
  for (auto& [id, running] : running_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    rids_.erase(running.job.rid);
    load_.num_unfinished -= running.num_left;
  }
  for (auto& [id, running] : running_) {
    running.job.listener->on_failure(running.job.item, status, message);
  }
  running_.clear();
}

void EngineService::publish() {
  const Clock::time_point now = Clock::now();
  if (const double seconds = seconds_between(rate_begin_, now); seconds >= 1) {
    metrics_.gen_throughput.set(static_cast<double>(rate_tokens_) / seconds);
    rate_begin_ = now;
    rate_tokens_ = 0;
    if (engine_ != nullptr) {
      const int64_t all = engine_->scheduler().num_preemptions();
      metrics_.num_retracted.set(static_cast<double>(all - rate_preemptions_));
      rate_preemptions_ = all;
    }
  }
  // What has to be gathered is so a few times a second, and whenever nothing is left to do.
  const bool is_due = seconds_between(published_, now) >= 0.1 || running_.empty();
  TokenUsage tokens;
  EngineCounters counters;
  if (engine_ != nullptr && is_due) {
    metrics_.take(*engine_);
    tokens = token_usage(*engine_);
    counters = engine_->counters();
    published_ = now;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  load_.num_running = engine_ == nullptr ? 0 : engine_->scheduler().num_running();
  load_.num_waiting = engine_ == nullptr ? 0 : engine_->scheduler().num_waiting();
  if (engine_ != nullptr && is_due) {
    load_.tokens = tokens;
    load_.counters = counters;
    load_.used_bytes = engine_->state_pools().used_bytes();
    load_.budget_bytes = engine_->state_pools().budget_bytes();
    load_.page_size = engine_->state_layout().page_size;
  }
  metrics_.utilization.set(static_cast<double>(load_.num_running) /
                           static_cast<double>(options_.max_running_requests));
  metrics_.num_running.set(static_cast<double>(load_.num_running));
  metrics_.num_queued.set(static_cast<double>(load_.num_waiting));
  metrics_.num_paused.set(is_paused_ ? static_cast<double>(load_.num_unfinished) : 0.0);
}

}  // namespace fathom
