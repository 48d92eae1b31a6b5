#include "fathom/launch/stages.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/log.h"
#include "fathom/launch/copy_tree.h"

namespace fathom {
namespace {

using config::Command;
using config::Conversion;
using config::Task;

/// "release" in the tracker: whole weights, as opposed to a step of a run.
bool is_released(const std::string& torch_dist_path) {
  const std::string tracker = join_path(torch_dist_path, kTracker);
  if (!file_exists(tracker)) return false;
  std::string content = read_file(tracker);
  content.erase(0, content.find_first_not_of(" \t\r\n"));
  content.erase(content.find_last_not_of(" \t\r\n") + 1);
  return content == "release";
}

bool is_cast(const std::string& path) { return file_exists(join_path(path, kShardIndex)); }

/// Whether a checkpoint directory is there. Which tensors are in it is its reader's business.
bool has_checkpoint(const std::string& path) {
  return file_exists(join_path(path, "config.json")) &&
         (file_exists(join_path(path, kShardIndex)) ||
          file_exists(join_path(path, "model.safetensors")));
}

std::unique_ptr<FileLock> wait_for_lock(const std::string& path) {
  bool is_said = false;
  for (;;) {
    if (auto lock = FileLock::try_acquire(path)) return lock;
    if (!is_said) log_info("waiting for another process that prepares models here (", path, ")");
    is_said = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

}  // namespace

/// The files of a task, below data_dir/<directory>.
struct DataSet {
  std::string repository;  // on the Hub; empty: built in
  std::string directory;
  std::vector<std::string> files;
  // Where the same rows lie when there is no such repository: theirs[i] becomes files[i].
  std::string other_repository = {};
  std::vector<std::string> theirs = {};
};

namespace {

std::vector<DataSet> data_sets(Task task) {
  switch (task) {
    case Task::kDapoAime:
      return {{"zhuzilin/dapo-math-17k", "dapo-math-17k", {"dapo-math-17k.jsonl"}},
              {"zhuzilin/aime-2024", "aime-2024", {"aime-2024.jsonl"}}};
    case Task::kGsm8k:
      return {{"zhuzilin/gsm8k",
               "gsm8k",
               {"train.parquet", "test.parquet"},
               "openai/gsm8k",
               {"main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"}}};
    case Task::kDigitSum:
      return {{"", "digit_sum", {"train.jsonl", "heldout.jsonl"}}};
  }
  return {};
}

}  // namespace

Launcher::Launcher(const config::ParsedCommand& command, StageFunctions functions,
                   std::string recipe_dir)
    : command_(command),
      options_(command.options),
      derived_(config::derive(command.options)),
      functions_(std::move(functions)),
      recipe_dir_(std::move(recipe_dir)) {}

void Launcher::run() {
  if (command_.command == Command::kTrain) return train();
  {
    const bool is_shared =
        command_.command == Command::kPrepareSpmd && functions_.is_one_of_several;
    std::unique_ptr<FileLock> lock;
    if (!is_shared) {
      make_directories(options_.launch.model_dir);
      lock = wait_for_lock(join_path(options_.launch.model_dir, ".fathom_prepare.lock"));
    }
    switch (command_.command) {
      case Command::kPrepareDownload:
        return prepare_download();
      case Command::kPrepareSingle:
        return prepare_single();
      case Command::kPrepareSpmd:
        return prepare_spmd();
      case Command::kPrepareCp:
        return prepare_cp();
      case Command::kFullTrain:
        full_train();
        break;
      default:
        FATHOM_ASSERT(false, "not a stage: ", config::command_name(command_.command));
    }
  }
  train();
}

void Launcher::skip(const std::string& stage, const std::string& reason) const {
  log_info("[full_train] Skipping ", stage, ": ", reason);
}

bool Launcher::is_two_step() const { return options_.launch.conversion == Conversion::kTwoStep; }

/// What full-train prepares; it trains afterwards, when the lock is released.
void Launcher::full_train() {
  prepare_download();
  // With --no-rollout-fp8 the cast is what rollout serves.
  if (!is_two_step() && derived_.rollout_name != derived_.bf16_name)
    skip("prepare-single", "--conversion single-pass reads the checkpoint as it is");
  else if (is_cast(derived_.bf16_path))
    skip("prepare-single", derived_.bf16_path + " is complete");
  else
    prepare_single();
  if (is_released(derived_.torch_dist_path))
    skip("prepare-spmd", derived_.torch_dist_path + " is complete");
  else
    prepare_spmd();
  if (derived_.model_local_dir == options_.launch.model_dir)
    skip("prepare-cp", "--model-local-dir is --model-dir");
  else
    prepare_cp();
}

void Launcher::prepare_download() {
  make_directories(options_.launch.model_dir);
  make_directories(options_.launch.data_dir);
  if (options_.launch.hf_checkpoint)
    skip("the download of the model", "--hf-checkpoint is " + *options_.launch.hf_checkpoint);
  else
    download_model();
  rewrite_model_type(derived_.source_path);
  download_data();
}

void Launcher::download_model() {
  const std::string& name = options_.launch.model_name;
  const std::string& to = derived_.source_path;
  if (name == config::kTiny) {
    const std::string from = join_path(recipe_dir_, "tiny/base");
    if (is_copied(from, to)) return skip("the download of the model", to + " is complete");
    // What was made of another base is not a result of this one.
    remove_file(join_path(derived_.bf16_path, kShardIndex));
    remove_file(join_path(derived_.torch_dist_path, kTracker));
    const CopyResult copied = copy_tree(from, to);
    log_info("built-in model ", name, " -> ", to, ", ", copied.num_bytes, " bytes");
    return;
  }
  const HubSource source{.repository = derived_.model_org + "/" + name,
                         .revision = options_.hub.revision,
                         .edited = {"config.json"}};  // rewrite_model_type
  const bool is_from_hub = functions_.hub.has_notes && functions_.hub.has_notes(to);
  if (has_checkpoint(to) && !is_from_hub)
    return skip("the download of the model", to + " is there");
  if (download(source, to) == HubOutcome::kUnchanged) return;
  // What was made of another version is not a result of this one.
  remove_file(join_path(derived_.bf16_path, kShardIndex));
  remove_file(join_path(derived_.torch_dist_path, kTracker));
}

/// full-train leaves a complete download alone, so that a run that goes on has the same model; the
/// stage alone asks the Hub for a newer one.
HubOutcome Launcher::download(const HubSource& source, const std::string& to) {
  const HubFunctions& hub = functions_.hub;
  if (!hub.download)
    throw ConfigError(str_cat("downloading ", source.repository, ": this build has no Hub client, ",
                              "and ", to, " does not hold it",
                              "\n  fix: put its files there, or build with -DFATHOM_HUB=ON; for a ",
                              "model --hf-checkpoint DIR, for data --prompt-data FILE"));
  if (command_.command == Command::kFullTrain && hub.is_downloaded(source, to)) {
    skip("the download of " + source.repository, to + " is complete");
    return HubOutcome::kUnchanged;
  }
  const HubOutcome outcome = hub.download(source, to);
  FATHOM_CHECK(outcome != HubOutcome::kNoSuchRepository || source.is_dataset, "the Hub has no ",
               source.repository,
               "\n  fix: check --model-name and --model-org, or give a token by ", "HF_TOKEN");
  return outcome;
}

void Launcher::download_data() {
  for (const DataSet& set : data_sets(options_.launch.task)) {
    if (!set.repository.empty()) {
      download_set(set);
      continue;
    }
    for (const std::string& file : set.files) {
      const std::string to = join_path(join_path(options_.launch.data_dir, set.directory), file);
      const CopyResult copied = copy_file(join_path(recipe_dir_, "tiny/data/" + file), to);
      if (copied.num_copied > 0) log_info("built-in data -> ", to);
    }
  }
}

void Launcher::download_set(const DataSet& set) {
  const std::string directory = join_path(options_.launch.data_dir, set.directory);
  const auto is_there = [&] {
    return std::all_of(set.files.begin(), set.files.end(), [&](const std::string& file) {
      return file_exists(join_path(directory, file));
    });
  };
  const bool is_from_hub = functions_.hub.has_notes && functions_.hub.has_notes(directory);
  if (is_there() && !is_from_hub)
    return skip("the download of " + set.repository, directory + " is there");
  if (!is_there() && command_.is_given("prompt-data"))
    return skip("the download of " + set.repository, "--prompt-data is given");

  HubSource source{.repository = set.repository, .is_dataset = true};
  HubSource other{.repository = set.other_repository, .is_dataset = true, .include = set.theirs};
  const bool has_other = !set.other_repository.empty();
  const bool had_other = has_other && is_from_hub && command_.command == Command::kFullTrain &&
                         functions_.hub.is_downloaded(other, directory);
  if (had_other)
    skip("the download of " + other.repository, directory + " is complete");
  else if (download(source, directory) != HubOutcome::kNoSuchRepository)
    other.repository.clear();
  else
    FATHOM_CHECK(has_other && download(other, directory) != HubOutcome::kNoSuchRepository,
                 "the Hub has no data set ", set.repository,
                 "\n  fix: give --prompt-data FILE, or put the files into ", directory);
  if (!other.repository.empty())
    for (size_t i = 0; i < set.files.size(); ++i)
      copy_file(join_path(directory, set.theirs[i]), join_path(directory, set.files[i]));
  for (const std::string& file : set.files)
    FATHOM_CHECK(file_exists(join_path(directory, file)), set.repository, " has no file ", file,
                 "\n  fix: give --prompt-data FILE, or put the file into ", directory);
}

void Launcher::rewrite_model_type(const std::string& directory) const {
  if (options_.launch.model_name != config::kFlash4Layer) return;
  if (rewrite_deepseek_ref(directory))
    log_info("[patch] model_type deepseek_ref -> deepseek_v4 in ",
             join_path(directory, "config.json"));
}

void Launcher::prepare_single() {
  const std::string from = options_.convert.input_fp8_hf_path.value_or(derived_.source_path);
  const std::string to = options_.convert.output_bf16_hf_path.value_or(derived_.bf16_path);
  log_info("prepare-single: ", from, " -> ", to);
  functions_.cast_to_bf16(from, to);
}

std::string Launcher::conversion_source() const {
  // Alone, prepare-spmd converts what it is told to.
  if (command_.command == Command::kPrepareSpmd && options_.launch.hf_checkpoint)
    return *options_.launch.hf_checkpoint;
  if (is_two_step()) return derived_.bf16_path;
  // The cast is the same weights, for those who kept it and not its source.
  if (!has_checkpoint(derived_.source_path) && is_cast(derived_.bf16_path))
    return derived_.bf16_path;
  return derived_.source_path;
}

void Launcher::prepare_spmd() {
  const bool is_alone = command_.command == Command::kPrepareSpmd;
  // --save follows the run where a run is named; only one that the user gave means this stage.
  const std::string to =
      is_alone && command_.is_given("save") ? *options_.checkpoint.save : derived_.torch_dist_path;
  const std::string from = conversion_source();
  log_info("prepare-spmd: ", from, " -> ", to);
  functions_.convert_to_torch_dist(from, to);
}

void Launcher::prepare_cp() {
  const std::string& from = options_.launch.model_dir;
  const std::string& to = derived_.model_local_dir;
  if (from == to) return log_info("prepare-cp: nothing to do, --model-local-dir is --model-dir");
  std::vector<std::string> names = {derived_.torch_dist_name};
  if (!options_.launch.hf_checkpoint) names.push_back(derived_.rollout_name);
  for (const std::string& name : names) {
    const CopyResult copied = copy_tree(join_path(from, name), join_path(to, name));
    log_info("prepare-cp: ", join_path(from, name), " -> ", join_path(to, name), ", ",
             copied.num_copied, " files copied, ", copied.num_kept, " were there");
  }
}

void Launcher::train() {
  rewrite_model_type(derived_.hf_checkpoint);
  options_.launch.hf_checkpoint = derived_.hf_checkpoint;
  options_.checkpoint.ref_load = derived_.ref_load;
  functions_.train(options_);
}

std::string default_recipe_dir() {
  // An installed program brings its own.
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  for (const char* beside : {"../share/fathom/configs", "../configs"}) {
    const std::string path = (program.parent_path() / beside).lexically_normal().string();
    if (!error && directory_exists(path)) return path;
  }
  return FATHOM_RECIPE_DIR;
}

bool rewrite_deepseek_ref(const std::string& directory) {
  const std::string path = join_path(directory, "config.json");
  if (!file_exists(path)) return false;
  static const std::string kFrom = "\"model_type\": \"deepseek_ref\"";
  static const std::string kTo = "\"model_type\": \"deepseek_v4\"";
  std::string text = read_file(path);
  size_t at = text.find(kFrom);
  if (at == std::string::npos) return false;
  for (; at != std::string::npos; at = text.find(kFrom, at + kTo.size()))
    text.replace(at, kFrom.size(), kTo);
  write_file_atomic(path, text);
  return true;
}

}  // namespace fathom
