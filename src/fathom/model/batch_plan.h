// Index arithmetic of a batch, done once per forward and shared by all its layers: positions,
// window rows, visible entries, rotary tables; and which of it is this rank's.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/batch.h"
#include "fathom/model/config.h"
#include "fathom/model/context_exchange.h"
#include "fathom/model/layout.h"
#include "fathom/numerics/kernel_array.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

struct RotaryTable {
  Tensor cos, sin;  // [positions, rd/2]
};

/// A stretch of one segment's tokens that is pooled into entries here. One that begins inside a
/// sequence begins at a window's first token: with overlap the window before its first entry, whose
/// own entry, `is_lead`, another rank makes.
struct PoolStretch {
  int64_t segment = 0;
  int64_t first_row = 0;                       // among the rows that token_rows fetches
  int64_t first_entry = 0;                     // among the pooled rows
  int64_t first_position = 0, num_tokens = 0;  // of the sequence
  bool operator==(const PoolStretch&) const = default;
};

/// The compressed entries that a batch completes, for one ratio. An entry belongs to the rank of
/// its last token.
struct RatioPlan {
  int64_t ratio = 0;
  KernelArray<int64_t> entry_begin;  // [segments + 1] new entries of each segment that this rank
                                     // sees, packed
  KernelArray<int32_t> num_visible;  // [T] floor((position + 1) / ratio)
  int64_t max_visible = 0;
  RotaryTable entry_rope;              // at the first position of each own new entry
  std::vector<PoolStretch> stretches;  // segments with own rows, one each
  int64_t num_leads = 0;               // pooled rows in front of the own entries: 0 or 1
  ContextExchange token_rows;          // rows behind own entries
  ContextExchange entries;             // entries that own queries see
  int64_t num_entries() const { return entry_begin.host().back(); }  // seen
  int64_t num_own() const { return entries.own().count; }
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
  std::vector<int64_t> window_row;    // [S] first cached row of the segment
  std::vector<int64_t> num_cached;    // [S] cached rows: min(start_pos, W - 1)
  ContextExchange window_rows;        // rows that own queries' windows reach
  int64_t num_window_rows = 0;        // of the buffer
  KernelArray<int64_t> window_begin;  // [T] in the buffer; of no use outside the context
  KernelArray<int32_t> window_count;  // [T]
  int64_t max_window = 0;
  KernelArray<int32_t> no_entries;      // [T] zeros
  KernelArray<int64_t> no_entry_begin;  // [S + 1] zeros
  RotaryTable plain_rope;               // of the context rows, for ratio-0 layers and MTP
  RotaryTable compress_rope;            // of the context rows, for layers with a ratio
  std::vector<RatioPlan> ratios;        // one per ratio that occurs

  const RatioPlan& ratio_plan(int64_t ratio) const;
  const RotaryTable& rope(int64_t ratio) const { return ratio == 0 ? plain_rope : compress_rope; }
};

/// @param layout outlives the plan. Context parallelism is for segments without a state.
/// @param for_mtp only what a ratio-0 block needs.
BatchPlan make_batch_plan(const ExecContext& ctx, const ModelConfig& config, const Layout& layout,
                          const Batch& batch, bool for_mtp);

}  // namespace fathom
