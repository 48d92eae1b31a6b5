// The stages of full-train, each of which can be run alone and is left out when its result exists.
//
//   prepare-download -> prepare-single -> prepare-spmd -> prepare-cp -> train
//
// A stage writes its sentinel last (copy_tree.h), so the sentinel means that it was completed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "fathom/config/derived.h"
#include "fathom/config/parse.h"

namespace fathom {

/// A repository on a Hub.
struct HubSource {
  std::string repository;  // "org/name"
  bool is_dataset = false;
  std::string revision = "main";
  std::vector<std::string> include;  // patterns; none: all files
  std::vector<std::string> edited;   // files that are changed here afterwards
};

enum class HubOutcome { kUnchanged, kChanged, kNoSuchRepository };

/// The Hub client; empty functions in a build without one.
struct HubFunctions {
  /// Makes `to` hold the repository's files. Errors: UserError.
  std::function<HubOutcome(const HubSource& source, const std::string& to)> download;
  /// Whether it does already, told without the Hub.
  std::function<bool(const HubSource& source, const std::string& to)> is_downloaded;
  /// Whether a Hub client has put files there, as opposed to a person.
  std::function<bool(const std::string& to)> has_notes;
};

/// The work itself, handed in so that this folder depends on none of it.
struct StageFunctions {
  /// FP8 or FP4 checkpoint directory -> BF16 checkpoint directory, its index written last. Leaves a
  /// complete cast of the same checkpoint alone.
  std::function<void(const std::string& from, const std::string& to)> cast_to_bf16;
  /// Checkpoint directory -> torch_dist directory, its tracker ("release") written last. Leaves a
  /// complete one alone.
  std::function<void(const std::string& from, const std::string& to)> convert_to_torch_dist;
  /// This process is one of several that share the conversion by themselves: stages do not wait for
  /// one another then.
  bool is_one_of_several = false;
  HubFunctions hub;
  /// The loop. @param options with hf_checkpoint and ref_load filled in.
  std::function<void(const config::Options& options)> train;
};

struct DataSet;

class Launcher {
 public:
  /// @param recipe_dir where the built-in models lie (--recipe-dir, else default_recipe_dir()).
  Launcher(const config::ParsedCommand& command, StageFunctions functions, std::string recipe_dir);

  /// Runs the subcommand that was parsed. Stages of several processes on one model directory run
  /// one after the other.
  /// Errors: UserError, ConfigError for what is not built.
  void run();

 private:
  void full_train();
  void prepare_download();
  void download_model();
  void download_data();
  void download_set(const DataSet& set);
  HubOutcome download(const HubSource& source, const std::string& to);
  void rewrite_model_type(const std::string& directory) const;
  void prepare_single();
  void prepare_spmd();
  void prepare_cp();
  void train();
  void skip(const std::string& stage, const std::string& reason) const;
  std::string conversion_source() const;
  bool is_two_step() const;

  const config::ParsedCommand& command_;
  config::Options options_;
  config::Derived derived_;
  StageFunctions functions_;
  std::string recipe_dir_;
};

/// The configs/ directory of the source tree that the program was built from, else the one beside
/// the program (../share/fathom/configs, ../configs).
std::string default_recipe_dir();

/// Replaces "model_type": "deepseek_ref" by "deepseek_v4" in directory/config.json, for programs
/// that know the second name only. @return whether it did; a missing file is none of its business.
bool rewrite_deepseek_ref(const std::string& directory);

}  // namespace fathom
