// Parameters in and out of DCP directories: row-major in files, the parameter's own layout in
// memory.
#pragma once

#include <string>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/dcp_writer.h"
#include "fathom/checkpoint/megatron_names.h"
#include "fathom/model/weights.h"

namespace fathom {

/// What goes before a model key for the optimizer's tensors.
inline constexpr const char* kMasterPrefix = "optimizer.state.param.";
inline constexpr const char* kExpAvgPrefix = "optimizer.state.exp_avg.";
inline constexpr const char* kExpAvgSqPrefix = "optimizer.state.exp_avg_sq.";

/// Reads the values of this rank's part of the parameter from under its Megatron key, widened to
/// fp32 (int32 for tables).
/// @param out memory in the parameter's layout, like its master.
/// Errors: UserError when the key is missing or has another shape or an unsuitable dtype.
void read_parameter(DcpReader& reader, const std::string& key_prefix, const Parameter& parameter,
                    int64_t num_experts, Tensor* out);

/// Rows [begin, end) of the whole parameter as fp32, row-major; a vector is one row. Safe from
/// several threads.
void read_parameter_rows(DcpReader& reader, const Parameter& parameter, int64_t num_experts,
                         int64_t begin, int64_t end, float* out);

/// Errors: UserError when the parameter is not there as the model needs it.
void check_stored(const DcpReader& reader, const std::string& key_prefix,
                  const Parameter& parameter, int64_t num_experts);

/// Adds the values as fp32 (int32 for tables) under the parameter's Megatron key.
/// @param values in the parameter's layout.
void write_parameter(DcpWriter& writer, const std::string& key_prefix, const Parameter& parameter,
                     int64_t num_experts, const Tensor& values);

/// Fills every master of `weights` (memory allocated) from a torch_dist directory, ours or one that
/// Megatron wrote for the same model, and refreshes what kernels read.
/// @param path the directory, or its parent with a tracker file.
/// Errors: UserError.
void load_torch_dist(const ExecContext& ctx, const std::string& path, Weights* weights);
void load_torch_dist(const std::string& path, Weights* weights);  // on one thread

/// The model's sizes under Megatron's option names, for common.pt.
Json megatron_args(const ModelConfig& config);

}  // namespace fathom
