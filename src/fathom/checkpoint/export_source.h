// Where exported weights come from: memory, or a torch_dist directory that is read row by row.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "fathom/model/weights.h"

namespace fathom {

class ExportSource {
 public:
  virtual ~ExportSource() = default;
  /// Names and shapes of all parameters; the memory of their masters is not asked for.
  virtual const Weights& model() const = 0;
  /// Rows [begin, end) as fp32; a vector is one row. Not for tables. Safe from any thread.
  virtual void read_rows(const Parameter& p, int64_t begin, int64_t end, float* out) const = 0;
  virtual void read_table(const Parameter& p, int32_t* out) const = 0;
};

/// @param weights must outlive the source.
std::unique_ptr<ExportSource> export_from_memory(const Weights& weights);

/// @param path a torch_dist directory, of weights or of a training run.
/// @param config describes it; MTP modules are there when both it and the tensors have them.
/// Errors: UserError for a directory that is damaged or of another model.
std::unique_ptr<ExportSource> export_from_torch_dist(const std::string& path, ModelConfig config);

/// Rows and columns of a parameter: a vector is one row.
int64_t parameter_rows(const Parameter& p);
int64_t parameter_cols(const Parameter& p);

}  // namespace fathom
