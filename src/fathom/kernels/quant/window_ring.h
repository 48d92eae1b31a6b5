// Rings of the last W latent rows of a sequence (row = position mod W), stored by an EntryFormat,
// and the window buffer of a batch: for each segment its cached rows, oldest first, then its new
// rows.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/kernels/quant/entry_format.h"

namespace fathom {

/// A segment of the batch.
struct WindowSegment {
  const uint8_t* ring;  // null: nothing is cached
  int64_t start_pos;    // position of the first new row
  int64_t num_cached;   // rows taken from the ring: positions start_pos - num_cached and on
  int64_t num_tokens;   // new rows
  int64_t first_row;    // of the segment in the window buffer
  int64_t first_fresh;  // of its new rows in `fresh`
};
/// @param fresh [T, format.width]; rows: the window buffer [.., format.width], written
void window_gather(const ExecContext& ctx, const EntryFormat& format, int64_t W,
                   const std::vector<WindowSegment>& segments, const float* fresh, float* rows);

/// New rows that pass through a ring: the last W of them stay.
struct WindowKeep {
  uint8_t* ring;
  int64_t start_pos;  // position of the first of them
  int64_t num_fresh;
  int64_t first_fresh;
};
void window_keep(const ExecContext& ctx, const EntryFormat& format, int64_t W,
                 const std::vector<WindowKeep>& rings, const float* fresh);

}  // namespace fathom
