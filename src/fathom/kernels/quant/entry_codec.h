// Cached rows: fp32 rows in, stored bytes, the same rows out.
//
// A row that already went through the format's simulated quantisation (quant.h) comes back bit for
// bit: E4M3 code times a power of two is a BF16 value, and its code is found again. So a forward
// that reads the cache and one that never had a cache see the same numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/kernels/quant/entry_format.h"

namespace fathom {

/// Stores rows [count, width]: each channel rounded once to the format, FP8 scales by
/// fp8_power_scale with amax at least 1e-4. NaN stays NaN; a block with an infinity becomes NaN.
/// @param out [count, format.num_bytes]
void encode_entries(const EntryFormat& format, const float* rows, int64_t count, uint8_t* out);

/// Rows first_row .. first_row + count - 1 in their own memory, one behind another.
struct EntryRun {
  int64_t first_row, count;
  uint8_t* to;
};
/// encode_entries of every run. @param rows [.., format.width], where the context computes, as are
/// the runs' destinations.
void encode_entry_runs(const ExecContext& ctx, const EntryFormat& format, const float* rows,
                       const std::vector<EntryRun>& runs);

/// The stored rows as fp32, exactly. @param rows [count, width]
void decode_entries(const ExecContext& ctx, const EntryFormat& format, const uint8_t* entries,
                    int64_t count, float* rows);

}  // namespace fathom
