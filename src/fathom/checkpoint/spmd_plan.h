// What a conversion to torch_dist will write, worked out from headers alone: every box of every
// tensor, its file, its place in the file and the rows of the source that it is made of. The same
// source and options give the same plan in every process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/checkpoint/dcp_metadata.h"
#include "fathom/checkpoint/layout.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/checkpoint/row_tasks.h"
#include "fathom/checkpoint/stream_files.h"

namespace fathom {

struct SpmdPlanOptions {
  ParallelLayout layout;
  int64_t piece_bytes = 4 << 20;  // of output made at a time by one thread
  /// From this size on, tensors that Megatron's tensor parallelism cuts are stored in at least 8
  /// boxes along that dimension, so that a loader of up to 8 ranks reads what it needs and no more.
  int64_t split_from_bytes = 4 << 20;
  int64_t max_file_bytes = 2LL << 30;  // what is written again when a run is killed
};

struct SpmdPlan {
  std::string id;                  // of source (names, sizes, times, headers) and options
  std::string save_id;             // the same without times, for .metadata
  std::vector<StreamFile> files;   // path is the bare name
  std::vector<int64_t> file_rank;  // Megatron's global rank of each
  std::vector<StreamItem> items;
  RowTasks tasks;
  std::vector<int64_t> task_file;     // first file that each task writes to; tasks of a file follow
                                      // one another but for files that are written together
  std::vector<int64_t> unit_of_file;  // files of one unit are written together, by one process
  std::vector<int64_t> unit_bytes;
  DcpMetadata metadata;
  std::vector<int64_t> rank_bytes;  // of all files, by rank
  int64_t num_tensors = 0, num_rounded = 0, num_kept_fp32 = 0;
  int64_t num_bytes = 0;         // of all files
  int64_t num_source_bytes = 0;  // of the source's tensors that are read
  int64_t num_chunks() const { return static_cast<int64_t>(items.size()); }
};

/// Errors: ConfigError when the model cannot be laid out as the options ask.
SpmdPlan make_spmd_plan(const ModelTensors& source, const SpmdPlanOptions& options);

/// Gives units to processes: contiguous runs of about equal bytes, in the order of the source.
/// @return the process of every unit.
std::vector<int64_t> share_units(const std::vector<int64_t>& unit_bytes, int64_t num_processes);

}  // namespace fathom
