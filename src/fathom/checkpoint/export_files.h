// The files of an export: what each tensor is made of, and the threads that make it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fathom/checkpoint/export_hf.h"
#include "fathom/checkpoint/safetensors_writer.h"
#include "fathom/checkpoint/shards.h"

namespace fathom {

/// One tensor of the output. With a scale it is written as FP8 codes, and the scale beside it.
struct ExportTensor {
  TensorSpec spec;
  std::optional<TensorSpec> scale;
  std::vector<const Parameter*> pieces;  // top to bottom
  const StoredTensor* copy = nullptr;    // bytes of another file; `pieces` is empty then
};

struct ExportFile {
  std::string name;
  std::vector<ExportTensor> tensors;
};

/// A weight in FP8 with its scale, or its values.
ExportTensor make_export_tensor(const std::string& name, const std::string& scale_name,
                                const Parameter& p, bool as_fp8, const ExportOptions& options);

/// Writes the files into options.output, which no other process may write to meanwhile.
/// @return counts of tensors and bytes. Errors: as export_hf.
ExportResult write_export_files(const ExecContext& ctx, const ExportSource& weights,
                                const std::vector<ExportFile>& files, const ExportOptions& options);

}  // namespace fathom
