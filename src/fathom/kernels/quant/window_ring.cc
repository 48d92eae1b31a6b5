#include "fathom/kernels/quant/window_ring.h"

#include <algorithm>
#include <cstring>

#include "fathom/kernels/quant/entry_codec.h"
#include "fathom/kernels/quant/entry_cuda.h"

namespace fathom {

void window_gather(const ExecContext& ctx, const EntryFormat& format, int64_t W,
                   const std::vector<WindowSegment>& segments, const float* fresh, float* rows) {
  FATHOM_DEVICE_DISPATCH(ctx, window_gather, format, W, segments, fresh, rows);
  const int64_t width = format.width;
  for (const WindowSegment& s : segments) {
    float* out = rows + s.first_row * width;
    for (int64_t j = 0; j < s.num_cached; ++j) {
      const int64_t position = s.start_pos - s.num_cached + j;
      decode_entries(ctx, format, s.ring + position % W * format.num_bytes, 1, out + j * width);
    }
    std::memcpy(out + s.num_cached * width, fresh + s.first_fresh * width,
                static_cast<size_t>(s.num_tokens * width) * sizeof(float));
  }
}

void window_keep(const ExecContext& ctx, const EntryFormat& format, int64_t W,
                 const std::vector<WindowKeep>& rings, const float* fresh) {
  FATHOM_DEVICE_DISPATCH(ctx, window_keep, format, W, rings, fresh);
  for (const WindowKeep& r : rings) {
    for (int64_t j = std::max<int64_t>(0, r.num_fresh - W); j < r.num_fresh; ++j) {
      encode_entries(format, fresh + (r.first_fresh + j) * format.width, 1,
                     r.ring + (r.start_pos + j) % W * format.num_bytes);
    }
  }
}

}  // namespace fathom
