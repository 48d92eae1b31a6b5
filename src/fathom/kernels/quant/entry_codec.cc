#include "fathom/kernels/quant/entry_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/kernels/quant/entry_cuda.h"
#include "fathom/kernels/quant/quant_cpu.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void encode_bf16(const float* x, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t code = f32_to_bf16(x[i]);
    std::memcpy(out + 2 * i, &code, sizeof code);
  }
}

/// One block: its codes and its scale.
uint8_t encode_fp8(const float* x, int64_t n, uint8_t* codes) {
  float amax = kFp8RowAmaxFloor;
  for (int64_t i = 0; i < n; ++i) amax = std::max(amax, std::fabs(x[i]));  // NaN does not count
  const float scale = fp8_power_scale(amax);
  for (int64_t i = 0; i < n; ++i) codes[i] = f32_to_e4m3(x[i] / scale);
  return std::isinf(scale) ? uint8_t{255} : f32_to_e8m0(scale);
}

}  // namespace

EntryFormat f32_entries(int64_t width) {
  return {EntryKind::kF32, width, 0, 0, width * static_cast<int64_t>(sizeof(float))};
}

EntryFormat bf16_entries(int64_t width) { return {EntryKind::kBf16, width, 0, 0, 2 * width}; }

EntryFormat fp8_entries(int64_t width, int64_t fp8_channels, int64_t fp8_block) {
  FATHOM_ASSERT(fp8_channels >= 0 && fp8_channels <= width && fp8_block >= 1, "width = ", width,
                ", fp8_channels = ", fp8_channels, ", fp8_block = ", fp8_block);
  const int64_t bytes =
      fp8_channels + 2 * (width - fp8_channels) + ceil_div(fp8_channels, fp8_block);
  return {EntryKind::kFp8, width, fp8_channels, fp8_block, ceil_div(bytes, 4) * 4};
}

void encode_entries(const EntryFormat& f, const float* rows, int64_t count, uint8_t* out) {
  if (f.kind == EntryKind::kF32) {
    if (count > 0) std::memcpy(out, rows, static_cast<size_t>(count * f.num_bytes));
    return;
  }
  if (f.kind == EntryKind::kBf16) return encode_bf16(rows, count * f.width, out);
  for (int64_t r = 0; r < count; ++r, rows += f.width, out += f.num_bytes) {
    const int64_t num_bf16 = f.width - f.fp8_channels;
    uint8_t* scales = out + f.fp8_channels + 2 * num_bf16;
    encode_bf16(rows + f.fp8_channels, num_bf16, out + f.fp8_channels);
    std::memset(scales, 0, static_cast<size_t>(out + f.num_bytes - scales));
    for (int64_t i = 0; i < f.fp8_channels; i += f.fp8_block) {
      *scales++ = encode_fp8(rows + i, std::min(f.fp8_block, f.fp8_channels - i), out + i);
    }
  }
}

void encode_entry_runs(const ExecContext& ctx, const EntryFormat& format, const float* rows,
                       const std::vector<EntryRun>& runs) {
  FATHOM_DEVICE_DISPATCH(ctx, encode_entry_runs, format, rows, runs);
  for (const EntryRun& r : runs) {
    encode_entries(format, rows + r.first_row * format.width, r.count, r.to);
  }
}

void decode_entries(const ExecContext& ctx, const EntryFormat& f, const uint8_t* entries,
                    int64_t count, float* rows) {
  if (f.kind == EntryKind::kF32) {
    if (count > 0) std::memcpy(rows, entries, static_cast<size_t>(count * f.num_bytes));
    return;
  }
  FATHOM_CPU_DISPATCH(ctx, decode_entry_rows, f, entries, count, rows);
}

}  // namespace fathom
