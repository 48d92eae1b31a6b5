#include "fathom/hub/transfer.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <optional>
#include <thread>

#include "fathom/base/file.h"
#include "fathom/base/log.h"
#include "fathom/hub/url.h"

namespace fathom::hub {
namespace {

constexpr int kMaxRefreshes = 5;  // of a file's signed URL, without a byte of it in between

struct ContentRange {
  int64_t begin, end;            // [begin, end)
  std::optional<int64_t> total;  // "*": not said
};

// "bytes 0-99/1000"
std::optional<ContentRange> parse_content_range(std::string_view text) {
  if (!text.starts_with("bytes ")) return std::nullopt;
  text.remove_prefix(6);
  const auto number = [&](char stop) -> std::optional<int64_t> {
    int64_t value = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const auto used = static_cast<size_t>(rest - text.data());
    if (error != std::errc() || value < 0) return std::nullopt;
    if (stop == 0 ? used != text.size() : used >= text.size() || text[used] != stop)
      return std::nullopt;
    text.remove_prefix(std::min(used + 1, text.size()));
    return value;
  };
  const auto first = number('-');
  const auto last = first ? number('/') : std::nullopt;
  if (!last || *last < *first) return std::nullopt;
  if (text == "*") return ContentRange{*first, *last + 1, std::nullopt};
  const auto total = number(0);
  if (!total) return std::nullopt;
  return ContentRange{*first, *last + 1, total};
}

}  // namespace

// One file. Fields below the mutex are shared by the file's segments.
struct Transfer::Job {
  RepoFile file;
  std::string etag;
  std::string what;  // for messages
  std::unique_ptr<FileLock> lock;
  std::unique_ptr<PartialFile> partial;
  std::mutex refreshing;  // held while a new location is asked for; taken before `mutex`
  std::mutex mutex;
  FileLocation location;
  int location_version = 0;
  int open_segments = 0;
  std::atomic<int> refreshes = 0;  // of the location, see kMaxRefreshes
  bool is_whole = false;      // the server sends all or nothing: one segment fetches everything
  bool was_repeated = false;  // after content that was not what it should be
};

// A range that one worker fetches, and how that goes.
struct Transfer::Segment {
  std::shared_ptr<Job> job;
  int64_t begin, end, at;
  bool asks_for_range = true;
  bool is_given_up = false;  // another segment fetches everything
  int64_t furthest = 0;      // highest `at` so far: a fetch of everything begins at 0 again
  int failures = 0;          // in a row, without a byte in between
  int location_version = 0;
  std::string url = {};
  bool is_redirected = false;
  bool is_new_answer = true;  // none of its body has been seen
  std::string problem = {};   // the answer breaks the protocol
};

Transfer::Transfer(const HubSettings& settings, const Repo& repo, const std::string& commit,
                   Destination* destination)
    : settings_(settings), repo_(repo), commit_(commit), destination_(destination) {}

Transfer::~Transfer() = default;

void Transfer::push(Task task) {
  const std::lock_guard lock(mutex_);
  tasks_.push_front(std::move(task));
  changed_.notify_all();
}

void Transfer::work() {
  std::optional<HubApi> api;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !tasks_.empty() || num_running_ == 0; });
    if (stop_ || tasks_.empty()) break;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    ++num_running_;
    lock.unlock();
    std::exception_ptr error;
    try {
      if (!api) api.emplace(settings_, &stop_);
      task(*api);
    } catch (...) {
      error = std::current_exception();
    }
    task = nullptr;  // what it holds goes while nobody waits for the mutex
    lock.lock();
    --num_running_;
    if (error && !error_) error_ = error;
    if (error) stop_ = true;
    changed_.notify_all();
  }
  changed_.notify_all();
}

void Transfer::run(const std::vector<RepoFile>& files,
                   const std::function<void(const TransferProgress&)>& report) {
  TransferProgress progress;
  progress.files_total = static_cast<int64_t>(files.size());
  for (const RepoFile& file : files) {
    progress.bytes_total += file.size;
    auto job = std::make_shared<Job>();
    job->file = file;
    job->what = repo_.name + ": " + file.path;
    tasks_.push_back([this, job](HubApi& api) { start(job, api); });
  }
  std::vector<std::thread> workers;
  const int num_workers = std::max(1, settings_.max_workers);
  {
    std::unique_lock lock(mutex_);
    for (int i = 0; i < num_workers; ++i) workers.emplace_back([this] { work(); });
    while (!stop_ && (!tasks_.empty() || num_running_ > 0)) {
      changed_.wait_for(lock, std::chrono::milliseconds(200));
      progress.bytes_done = bytes_done_;
      progress.files_done = files_done_;
      lock.unlock();
      if (report) report(progress);
      lock.lock();
    }
  }
  for (std::thread& worker : workers) worker.join();
  tasks_.clear();
  if (error_) std::rethrow_exception(error_);
}

void Transfer::start(const std::shared_ptr<Job>& job, HubApi& api) {
  job->location = api.locate(repo_, commit_, job->file.path);
  job->etag = job->location.etag;
  if (job->location.size)
    FATHOM_CHECK(*job->location.size == job->file.size, job->what, ": the listing says ",
                 job->file.size, " bytes, the file's headers ", *job->location.size);
  if (!job->file.sha256.empty() && is_sha256(job->etag))
    FATHOM_CHECK(job->etag == job->file.sha256, job->what, ": the listing promises SHA-256 ",
                 job->file.sha256, ", the file's headers ", job->etag);
  if (!take_lock(job)) return;
  if (destination_->adopt(job->file, job->etag)) {
    bytes_done_ += job->file.size;
    return complete(job);
  }
  job->partial =
      PartialFile::open(destination_->partial_stem(job->file, job->etag), job->file.size);
  bytes_done_ += job->partial->bytes_present();
  push_segments(job);
}

bool Transfer::take_lock(const std::shared_ptr<Job>& job) {
  const std::string path = destination_->lock_path(job->file, job->etag);
  for (bool is_said = false;; is_said = true) {
    try {
      job->lock = FileLock::try_acquire(path);
    } catch (const UserError& e) {  // a cache of several users: the lock only saves traffic
      log_warning(e.what(), "; going on without it");
      return true;
    }
    if (job->lock) return true;
    if (!is_said) log_info(job->what, ": waiting for another download of it (", path, ")");
    if (!sleep_unless(0.2, &stop_)) return false;
  }
}

void Transfer::push_segments(const std::shared_ptr<Job>& job) {
  std::vector<std::pair<int64_t, int64_t>> segments;
  for (const auto& [begin, end] : job->partial->missing())
    for (int64_t at = begin; at < end; at += settings_.range_bytes)
      segments.emplace_back(at, std::min(at + settings_.range_bytes, end));
  job->open_segments = static_cast<int>(segments.size());
  if (segments.empty()) return finish(job);
  // Pushed to the front, so the first one goes last.
  for (auto it = segments.rbegin(); it != segments.rend(); ++it) {
    const auto [begin, end] = *it;
    push([this, job, begin = begin, end = end](HubApi& api) { fetch(job, begin, end, api); });
  }
}

void Transfer::fetch(const std::shared_ptr<Job>& job, int64_t begin, int64_t end, HubApi& api) {
  Segment segment{job, begin, end, begin};
  while (segment.at < segment.end && !segment.is_given_up && !stop_) {
    {
      const std::lock_guard lock(job->mutex);
      if (job->is_whole && segment.asks_for_range) break;  // somebody fetches everything
      segment.url = job->location.url;
      segment.is_redirected = job->location.is_redirected;
      segment.location_version = job->location_version;
    }
    const bool is_everything = segment.at == 0 && segment.end == job->file.size;
    std::vector<std::string> headers;
    if (segment.asks_for_range && !is_everything)
      headers.push_back(str_cat("Range: bytes=", segment.at, "-", segment.end - 1));
    segment.is_new_answer = true;
    const HttpResponse response =
        api.get(segment.url, headers, [&](const HttpResponse& head, std::string_view bytes) {
          return take_piece(segment, head, bytes);
        });
    if (segment.at < segment.end && !segment.is_given_up && !stop_) settle(segment, response, api);
  }
  if (stop_) return;
  bool is_last = false;
  {
    const std::lock_guard lock(job->mutex);
    is_last = --job->open_segments == 0;
  }
  if (is_last) finish(job);
}

// The first segment that learns of it fetches the file from its beginning; the others end.
bool Transfer::claim_whole(Segment& segment) {
  const std::shared_ptr<Job>& job = segment.job;
  const std::lock_guard lock(job->mutex);
  if (job->is_whole && segment.asks_for_range) {
    segment.is_given_up = true;
    return false;
  }
  job->is_whole = true;
  segment.asks_for_range = false;
  bytes_done_ -= job->partial->bytes_present();
  job->partial->reset();
  segment.begin = segment.at = 0;
  segment.end = job->file.size;
  return true;
}

// Whether the answer is one that the segment can use. May turn it into a fetch of everything.
bool Transfer::check_answer(Segment& segment, const HttpResponse& head) {
  const int64_t size = segment.job->file.size;
  const std::string& coding = head.header("content-encoding");
  if (!coding.empty() && coding != "identity") {
    segment.problem = "the file comes compressed (" + coding + "), which was not asked for";
  } else if (head.status == 206) {
    const auto range = parse_content_range(head.header("content-range"));
    if (!range || range->begin != segment.at || range->end > segment.end ||
        range->total.value_or(size) != size)
      segment.problem = str_cat("asked for bytes ", segment.at, " to ", segment.end - 1, " of ",
                                size, ", got '", head.header("content-range"), "'");
  } else if (segment.at != 0 || segment.end != size) {
    return claim_whole(segment);  // 200: the range was ignored
  }
  return segment.problem.empty();
}

bool Transfer::take_piece(Segment& segment, const HttpResponse& head, std::string_view bytes) {
  if (segment.is_new_answer && !check_answer(segment, head)) return false;
  segment.is_new_answer = false;
  if (static_cast<int64_t>(bytes.size()) > segment.end - segment.at) {
    segment.problem = str_cat("more than the ", segment.end - segment.begin, " bytes promised");
    return false;
  }
  segment.job->partial->write(segment.at, bytes);
  const auto count = static_cast<int64_t>(bytes.size());
  segment.at += count;
  if (segment.at > segment.furthest) {  // patience is for those who get nowhere
    segment.furthest = segment.at;
    segment.failures = 0;
    segment.job->refreshes = 0;
  }
  bytes_done_ += count;
  bytes_received_ += count;
  return true;
}

// An answer ended before the segment did: what to do next.
void Transfer::settle(Segment& segment, const HttpResponse& response, HubApi& api) {
  const std::shared_ptr<Job>& job = segment.job;
  const std::string place = job->what + ": " + printable_url(segment.url);
  FATHOM_CHECK(segment.problem.empty(), place, ": ", segment.problem);
  if (response.status == 416 && response.failure.empty()) {
    FATHOM_CHECK(segment.asks_for_range, place, ": refuses even the whole file (416)");
    claim_whole(segment);
    return;
  }
  if (response.failure.empty() && segment.is_redirected &&
      (response.status == 401 || response.status == 403 || response.status == 410))
    return refresh_location(segment, api);
  const bool is_short = response.is_ok();
  if (!is_short && !is_worth_retrying(response)) {
    if (response.failure.empty())
      throw HubRefusal(str_cat(place, ": answered ", response.status), response.status, "");
    throw HubUnreachable(str_cat(place, ": ", response.failure));
  }
  const std::string why = is_short                   ? "the answer ended early"
                          : response.failure.empty() ? str_cat("it answered ", response.status)
                                                     : response.failure;
  if (++segment.failures >= settings_.retry.max_tries)
    throw HubUnreachable(str_cat(place, ": ", why, ", ", segment.failures,
                                 " times\n  fix: run the same command again; what has arrived is "
                                 "kept"));
  const double delay = retry_delay_s(settings_.retry, segment.failures, response);
  log_info(place, ": ", why, " at byte ", segment.at, "; going on in ", delay, " s");
  sleep_unless(delay, &stop_);
}

void Transfer::refresh_location(Segment& segment, HubApi& api) {
  const std::shared_ptr<Job>& job = segment.job;
  const std::lock_guard one_at_a_time(job->refreshing);
  {
    const std::lock_guard lock(job->mutex);
    if (job->location_version != segment.location_version) return;  // another one has done it
  }
  FATHOM_CHECK(++job->refreshes <= kMaxRefreshes, job->what, ": ", printable_url(segment.url),
               " refuses its signed address ", kMaxRefreshes, " times");
  const FileLocation fresh = api.locate(repo_, commit_, job->file.path);
  FATHOM_CHECK(fresh.etag == job->etag, job->what, " has changed while it was fetched");
  const std::lock_guard lock(job->mutex);
  job->location = fresh;
  ++job->location_version;
}

void Transfer::finish(const std::shared_ptr<Job>& job) {
  FATHOM_ASSERT(job->partial->missing().empty(),
                "segments are done, bytes are missing: ", job->what);
  std::string got;
  if (has_promised_content(job->partial->path(), job->file, &got)) {
    destination_->publish(job->file, job->etag, job->partial.get());
    return complete(job);
  }
  bytes_done_ -= job->file.size;
  const char* kind = job->file.sha256.empty() ? "git hash" : "SHA-256";
  const std::string complaint =
      str_cat(job->what, ": ", kind, " ", got, ", promised was ", job->file.etag());
  if (job->was_repeated || job->file.size == 0) {
    job->partial->discard();
    throw UserError(complaint +
                    "; nothing of it was kept\n  fix: run the same command again "
                    "later; if that does not help, the file on the Hub is damaged");
  }
  log_warning(complaint, "; fetching it once more");
  job->was_repeated = true;
  job->is_whole = false;
  job->partial->reset();
  push_segments(job);
}

void Transfer::complete(const std::shared_ptr<Job>& job) {
  job->partial.reset();
  job->lock.reset();
  ++files_done_;
}

}  // namespace fathom::hub
