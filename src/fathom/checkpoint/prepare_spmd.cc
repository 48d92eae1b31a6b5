#include "fathom/checkpoint/prepare_spmd.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_weights.h"
#include "fathom/checkpoint/dcp_writer.h"

namespace fathom {
namespace {

constexpr const char* kRelease = "release";
constexpr const char* kCommand = "prepare-spmd";
constexpr const char* kAside =
    ".release.aside.partial";  // a later run removes it if this one cannot

// Whether an earlier run finished. Errors: UserError when the place is taken by something else.
bool is_finished(const std::string& out_dir) {
  const std::optional<std::string> tracker = read_tracker(out_dir);
  if (!tracker) return false;
  FATHOM_CHECK(*tracker == kRelease, tracker_path(out_dir), " names step ", *tracker,
               ": the directory holds the checkpoints of a training run",
               "\n  fix: give another directory with --save");
  resolve_checkpoint(out_dir);  // says so when the directory is not whole
  return true;
}

std::optional<int64_t> file_size(const std::string& path, int64_t* num_blocks_bytes = nullptr) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
  if (num_blocks_bytes != nullptr) *num_blocks_bytes = info.st_blocks * 512;
  return info.st_size;
}

class Conversion {
 public:
  Conversion(const ExecContext& ctx, const ModelTensors& source, const std::string& out_dir,
             const PrepareSpmdOptions& options, SpmdPlan plan)
      : ctx_(ctx),
        source_(source),
        out_dir_(out_dir),
        options_(options),
        plan_(std::move(plan)),
        partial_(PendingDirectory::resumable_path(out_dir, kRelease, plan_.id)),
        pending_(options.place.rank == 0
                     ? std::make_unique<PendingDirectory>(out_dir, kRelease, plan_.id)
                     : nullptr),
        group_(join_path(out_dir, str_cat(".", kRelease, ".", plan_.id, ".work")), options.place,
               options.patience_seconds) {
    for (StreamFile& file : plan_.files) file.path = join_path(partial_, file.path);
  }

  PrepareSpmdResult run() {
    try {
      return convert();
    } catch (const std::exception& e) {
      group_.fail(e.what());
      throw;
    }
  }

 private:
  bool is_tracked() const { return read_tracker(out_dir_).has_value(); }
  bool is_coordinator() const { return options_.place.rank == 0; }

  PrepareSpmdResult convert() {
    if (is_coordinator()) {
      remove_messages_of_others();
      remove_temporaries(out_dir_);
      // Published, but killed before the tracker: nobody counts on it, and it is made again.
      if (directory_exists(join_path(out_dir_, kRelease))) {
        std::filesystem::rename(join_path(out_dir_, kRelease), join_path(out_dir_, kAside));
        std::filesystem::remove_all(join_path(out_dir_, kAside));
      }
      check_free_space(kCommand, out_dir_, bytes_to_allocate(), "--save");
      group_.open_gate();
    } else {
      // Of a run that goes on with finished files rank 0 may be done already. Or the gate is one
      // that an earlier run of the same name left open, and rank 0 has yet to come.
      group_.wait_until(
          [&] { return is_tracked() || (group_.is_gate_open() && directory_exists(partial_)); });
    }
    PrepareSpmdResult result;
    result.num_files = static_cast<int64_t>(plan_.files.size());
    write_files(&result);
    if (is_coordinator()) {
      group_.wait_until([&] { return all_files_are_there(); });
      publish(*pending_);
    } else {
      group_.wait_until([&] { return is_tracked(); });
    }
    result.num_tensors = plan_.num_tensors;
    result.num_chunks = plan_.num_chunks();
    result.num_bytes = plan_.num_bytes;
    result.num_rounded = plan_.num_rounded;
    result.num_kept_fp32 = plan_.num_kept_fp32;
    return result;
  }

  // Conversions of other sources that ended early; the lock tells that none is at work.
  void remove_messages_of_others() const {
    for (const std::string& name : list_directory(out_dir_)) {
      const bool is_ours = name.find(plan_.id) != std::string::npos;
      if (name.starts_with(str_cat(".", kRelease, ".")) && name.ends_with(".work") && !is_ours) {
        std::error_code ignored;
        std::filesystem::remove_all(join_path(out_dir_, name), ignored);
      }
    }
  }

  bool is_there(const StreamFile& file) const { return file_size(file.path) == file.num_bytes; }
  bool all_files_are_there() const {
    return std::all_of(plan_.files.begin(), plan_.files.end(),
                       [&](const StreamFile& f) { return is_there(f); });
  }

  // What the disk must still give; blocks of a killed run's unfinished files are used again.
  int64_t bytes_to_allocate() const {
    int64_t bytes = 1 << 20;  // the small files
    for (const StreamFile& file : plan_.files) {
      if (is_there(file)) continue;
      int64_t allocated = 0;
      file_size(StreamWriter::temporary_path(file.path), &allocated);
      bytes += std::max<int64_t>(0, file.num_bytes - allocated);
    }
    return bytes;
  }

  void write_files(PrepareSpmdResult* result) {
    // A unit whose files are not all there is written again as a whole.
    const std::vector<int64_t> process = share_units(plan_.unit_bytes, options_.place.size);
    std::vector<bool> unit_wanted(plan_.unit_bytes.size(), false);
    for (size_t i = 0; i < plan_.files.size(); ++i) {
      const auto unit = static_cast<size_t>(plan_.unit_of_file[i]);
      if (process[unit] == options_.place.rank && !is_there(plan_.files[i])) {
        unit_wanted[unit] = true;
      }
    }
    std::vector<bool> wanted(plan_.files.size());
    for (size_t i = 0; i < plan_.files.size(); ++i) {
      const auto unit = static_cast<size_t>(plan_.unit_of_file[i]);
      wanted[i] = unit_wanted[unit];
      if (!wanted[i] && process[unit] == options_.place.rank) ++result->num_files_kept;
    }
    std::vector<int64_t> tasks;
    int64_t total = 0;
    for (size_t i = 0; i < plan_.tasks.tasks.size(); ++i) {
      if (!wanted[static_cast<size_t>(plan_.task_file[i])]) continue;
      tasks.push_back(static_cast<int64_t>(i));
      total += row_task_bytes(plan_.tasks.tasks[i]);
    }
    // Files that are missing because rank 0 has published them, which it does when all are there.
    if (!tasks.empty() && !is_coordinator() && !directory_exists(partial_)) return;
    if (result->num_files_kept > 0) {
      log_info(kCommand, ": ", result->num_files_kept, " files are there from an earlier run");
    }
    const int threads = num_stream_threads(ctx_.threads->num_threads());
    StreamWriter writer(plan_.files, plan_.items, wanted);
    RowConverter converter(ctx_, plan_.tasks, writer, /*check_finite=*/true, threads);
    const bool shows_all = is_coordinator() && options_.place.size > 1;
    ByteProgress progress(kCommand, shows_all ? all_task_bytes() : total);
    const auto count = static_cast<int64_t>(tasks.size());
    std::atomic<int64_t> done{0};
    try {
      run_stream_tasks(threads, count, [&](int64_t i, int thread) {
        group_.check_others();
        if (i + threads < count) converter.prefetch(tasks[static_cast<size_t>(i + threads)]);
        const int64_t bytes = converter.run(tasks[static_cast<size_t>(i)], thread);
        done.fetch_add(bytes);
        group_.report(done.load());
        if (!is_coordinator()) return;
        progress.set_others(group_.bytes_of_others());
        progress.add(bytes);
      });
    } catch (...) {
      progress.finish();
      writer.discard();
      throw;
    }
    progress.finish();
    result->num_bytes_written = writer.num_bytes();
    result->num_bytes_read = done.load() - converter.num_bytes_put();
  }

  int64_t all_task_bytes() const {
    int64_t total = 0;
    for (const RowTask& task : plan_.tasks.tasks) total += row_task_bytes(task);
    return total;
  }

  void publish(PendingDirectory& pending) {
    std::map<std::string, int64_t> sizes;
    for (const StreamFile& file : plan_.files) sizes[base_name(file.path)] = file.num_bytes;
    validate_dcp_metadata(plan_.metadata, sizes, pending.path());
    // Nothing but the checkpoint's own files may be published.
    for (const std::string& name : list_directory(pending.path())) {
      if (!sizes.contains(name)) std::filesystem::remove(pending.file(name));
    }
    const ParallelLayout& layout = options_.plan.layout;
    Json args = megatron_args(source_.config());
    args["bf16"] = true;
    args["tensor_model_parallel_size"] = layout.tensor;
    args["pipeline_model_parallel_size"] = layout.pipeline;
    args["expert_model_parallel_size"] = layout.expert;
    args["expert_tensor_parallel_size"] = layout.expert_tensor;
    args["world_size"] = layout.num_ranks();
    args["data_parallel_size"] = layout.ranks_per_stage() / layout.tensor;
    write_dcp_headers(pending, plan_.metadata, kRelease, plan_.save_id,
                      encode_common_pt(args, /*iteration=*/1, /*with_optimizer=*/false));
    pending.publish();
    // Before the tracker, after which nothing more is done here, whenever this process is killed.
    group_.finish();
    write_file_atomic(tracker_path(out_dir_), kRelease);
  }

  const ExecContext& ctx_;
  const ModelTensors& source_;
  const std::string out_dir_;
  const PrepareSpmdOptions& options_;
  SpmdPlan plan_;
  const std::string partial_;
  const std::unique_ptr<PendingDirectory> pending_;  // of rank 0: the lock against other jobs
  SpmdGroup group_;
};

}  // namespace

PrepareSpmdResult prepare_spmd(const ExecContext& ctx, const ModelTensors& source,
                               const std::string& out_dir, const PrepareSpmdOptions& options) {
  FATHOM_ASSERT(options.place.rank >= 0 && options.place.rank < options.place.size);
  if (is_finished(out_dir)) {
    PrepareSpmdResult result;
    result.was_there = true;
    return result;
  }
  Conversion conversion(ctx, source, out_dir, options, make_spmd_plan(source, options.plan));
  const PrepareSpmdResult result = conversion.run();
  if (options.place.rank > 0) return result;
  log_info(kCommand, ": ", result.num_tensors, " tensors in ", result.num_chunks, " pieces, ",
           result.num_files, result.num_files == 1 ? " file, " : " files, ", result.num_bytes,
           " bytes, in ", join_path(out_dir, kRelease));
  log_info(kCommand, ": ", result.num_kept_fp32,
           " tensors kept in F32 (attn_sink, ape, hc_*, gate.bias), all others are BF16; ",
           result.num_rounded,
           " F32 or F16 tensors of the source were rounded for that; vocabulary of ",
           source.config().vocab_size, " not padded");
  return result;
}

std::string describe_spmd_plan(const SpmdPlan& plan, const ParallelLayout& layout) {
  std::string text =
      str_cat(layout.to_string(), ": ", layout.num_ranks(),
              layout.num_ranks() == 1 ? " rank, " : " ranks, ", plan.metadata.tensors.size(),
              " tensors in ", plan.num_chunks(), " pieces, ", plan.files.size(), " files, ",
              plan.num_bytes, " bytes; reads ", plan.num_source_bytes, " bytes\n");
  std::vector<int64_t> files(plan.rank_bytes.size(), 0);
  for (const int64_t rank : plan.file_rank) ++files[static_cast<size_t>(rank)];
  text += "  rank  stage  files            bytes\n";
  for (size_t rank = 0; rank < plan.rank_bytes.size(); ++rank) {
    char line[96];
    std::snprintf(line, sizeof line, "%6zu %6lld %6lld %16lld\n", rank,
                  static_cast<long long>(static_cast<int64_t>(rank) / layout.ranks_per_stage()),
                  static_cast<long long>(files[rank]),
                  static_cast<long long>(plan.rank_bytes[rank]));
    text += line;
  }
  return text;
}

}  // namespace fathom
