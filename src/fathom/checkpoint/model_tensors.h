// A model directory seen as the parameters of its configuration: names of all dialects resolved,
// scales paired with their weights, experts that share one tensor told apart, everything checked
// before any weight is read.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "fathom/checkpoint/decode.h"
#include "fathom/checkpoint/names.h"
#include "fathom/model/weights.h"

namespace fathom {

class ModelTensors {
 public:
  /// @param with_mtp false leaves tensors of MTP modules aside.
  /// Errors: UserError for a wrong config.json or broken files, and one that lists missing,
  /// unexpected, repeated, wrongly shaped and undecodable tensors (the first ones and how many).
  /// @param check kFp4WhenDecoded leaves the values of FP4 scales to whoever decodes them.
  explicit ModelTensors(const std::string& directory, bool with_mtp = true,
                        ScaleCheck check = ScaleCheck::kNow);

  /// A parameter's rows inside a stored tensor.
  struct Source {
    const EncodedTensor* tensor = nullptr;
    int64_t first_row = 0;
    int64_t num_rows = 0;
  };

  /// num_nextn_predict_layers is 0 when the directory holds no MTP tensor.
  const ModelConfig& config() const { return config_; }
  const std::string& directory() const { return directory_; }
  const TensorShards& shards() const { return shards_; }
  NameDialect dialect() const { return dialect_; }
  /// Official names of all parameters, and where their numbers lie.
  const std::map<std::string, Source>& sources() const { return sources_; }
  const Source& source(const std::string& official) const;  // InternalError for an unknown name
  /// What was left aside, for the log.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  void collect(bool with_mtp, ScaleCheck check);
  void match(const Weights& expected);

  std::string directory_;
  ModelConfig config_;
  TensorShards shards_;
  NameDialect dialect_ = NameDialect::kOfficial;
  std::map<std::string, EncodedTensor> encoded_;  // by official name, fused ones included
  std::map<std::string, Source> sources_;
  std::set<std::string> undecodable_;
  std::vector<std::string> notes_, problems_;
};

}  // namespace fathom
