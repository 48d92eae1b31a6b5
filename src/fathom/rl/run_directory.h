// Where a run writes: {save-dir}/{run-id}/ with config.json, metrics.jsonl, tensorboard/,
// checkpoints/, rollout/, eval/ and run.log. One process owns it at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/data/sample.h"

namespace fathom {

class RunDirectory {
 public:
  /// Makes or opens the directory and takes its lock.
  /// Errors: UserError when another process holds it or it cannot be written.
  explicit RunDirectory(const std::string& path);

  /// Writes config.json, once: it says what the run was started with. A later start with other
  /// options leaves them in config_resumed.json.
  void save_config(const Json& config) const;

  const std::string& path() const { return path_; }
  std::string checkpoints() const { return join_path(path_, "checkpoints"); }

  /// One JSON object a line per sample: prompt, label, response, reward, status.
  /// `folder` is "rollout" or "eval"; written whole or not at all.
  void write_samples(const std::string& folder, const std::string& name,
                     const std::vector<const Sample*>& samples) const;
  /// What write_samples wrote, or nothing when there is no such file.
  std::vector<Json> read_samples(const std::string& folder, const std::string& name) const;

 private:
  std::string path_;
  std::unique_ptr<FileLock> lock_;
};

}  // namespace fathom
