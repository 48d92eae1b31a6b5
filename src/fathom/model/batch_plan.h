// Index arithmetic of a batch, done once per forward and shared by all its layers: positions,
// window rows, visible entries, rotary tables.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/batch.h"
#include "fathom/model/config.h"
#include "fathom/model/layout.h"
#include "fathom/numerics/kernel_array.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

struct RotaryTable {
  Tensor cos, sin;  // [positions, rd/2]
};

/// The compressed entries that a batch completes, for one ratio.
struct RatioPlan {
  int64_t ratio = 0;
  KernelArray<int64_t> entry_begin;  // [segments + 1] new entries of each segment, packed
  KernelArray<int32_t> num_visible;  // [T] floor((position + 1) / ratio)
  int64_t max_visible = 0;
  RotaryTable entry_rope;  // at the first position of each new entry
  int64_t num_entries() const { return entry_begin.host().back(); }
};

struct BatchPlan {
  int64_t T = 0, S = 0;                             // tokens, segments
  const Layout* layout = nullptr;                   // of the weights
  RowRange context_rows, stream_rows, routed_rows;  // this rank's of the T (model/layout.h)
  KernelArray<int32_t> token_ids;                   // [T]
  std::vector<int64_t> row_begin;                   // [S + 1] first token row of each segment
  KernelArray<int64_t> positions;                   // [T]
  KernelArray<int32_t> segment_of;                  // [T]
  // The window buffer of a layer: for each segment its cached rows (oldest first), then its new
  // rows.
  std::vector<int64_t> window_row;  // [S] first cached row of the segment
  std::vector<int64_t> num_cached;  // [S] cached rows: min(start_pos, W - 1)
  int64_t num_window_rows = 0;
  KernelArray<int64_t> window_begin;  // [T]
  KernelArray<int32_t> window_count;  // [T]
  int64_t max_window = 0;
  KernelArray<int32_t> no_entries;      // [T] zeros
  KernelArray<int64_t> no_entry_begin;  // [S + 1] zeros
  RotaryTable plain_rope;               // ratio-0 layers and MTP
  RotaryTable compress_rope;            // layers with a ratio
  std::vector<RatioPlan> ratios;        // one per ratio that occurs

  const RatioPlan& ratio_plan(int64_t ratio) const;
  const RotaryTable& rope(int64_t ratio) const { return ratio == 0 ? plain_rope : compress_rope; }
};

/// @param layout outlives the plan. @param for_mtp only what a ratio-0 block needs.
BatchPlan make_batch_plan(const ExecContext& ctx, const ModelConfig& config, const Layout& layout,
                          const Batch& batch, bool for_mtp);

}  // namespace fathom
