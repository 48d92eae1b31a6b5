// Cached rows: a warp of threads stores or reads one row.
#include <algorithm>

#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/quant/entry_cuda.h"
#include "fathom/kernels/quant/entry_device.cuh"

namespace fathom::cuda {
namespace {

constexpr int kRowsPerBlock = 8, kRowThreads = 32;

__device__ inline uint8_t e4m3_code(float x) {
  const uint32_t bits = __float_as_uint(x);
  const uint32_t sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint8_t>(sign | 0x7Fu);
  const float a = __uint_as_float(magnitude);
  if (a >= 448.0f) return static_cast<uint8_t>(sign | 0x7Eu);
  if (a < 0x1p-6f) {
    return static_cast<uint8_t>(sign | (__float_as_uint(a + 0x1p14f) - __float_as_uint(0x1p14f)));
  }
  const uint32_t rounded = (magnitude + 0x7FFFFu + ((magnitude >> 20) & 1u)) >> 20;
  return static_cast<uint8_t>(sign | (rounded - (120u << 3)));
}

__device__ inline void store_bf16(float x, uint8_t* to) {
  const uint32_t code = __float_as_uint(round_bf16_of(x)) >> 16;
  to[0] = static_cast<uint8_t>(code & 0xFFu);
  to[1] = static_cast<uint8_t>(code >> 8);
}

/// By the 32 threads of a warp.
__device__ inline void encode_row(const EntryFormat& f, const float* row, uint8_t* out) {
  const int64_t lane = threadIdx.x;
  if (f.kind == EntryKind::kF32) {
    float* to = reinterpret_cast<float*>(out);
    for (int64_t i = lane; i < f.width; i += kRowThreads) to[i] = row[i];
    return;
  }
  if (f.kind == EntryKind::kBf16) {
    for (int64_t i = lane; i < f.width; i += kRowThreads) store_bf16(row[i], out + 2 * i);
    return;
  }
  const int64_t num_bf16 = f.width - f.fp8_channels;
  const int64_t num_blocks = (f.fp8_channels + f.fp8_block - 1) / f.fp8_block;
  uint8_t* const scales = out + f.fp8_channels + 2 * num_bf16;
  for (int64_t i = lane; i < num_bf16; i += kRowThreads) {
    store_bf16(row[f.fp8_channels + i], out + f.fp8_channels + 2 * i);
  }
  for (int64_t i = scales - out + num_blocks + lane; i < f.num_bytes; i += kRowThreads) out[i] = 0;
  for (int64_t b = 0; b < num_blocks; ++b) {
    const int64_t begin = b * f.fp8_block;
    const int64_t end = begin + f.fp8_block < f.fp8_channels ? begin + f.fp8_block : f.fp8_channels;
    float amax = kFp8RowAmaxFloor;
    for (int64_t i = begin + lane; i < end; i += kRowThreads) {
      const float a = fabsf(row[i]);
      amax = a > amax ? a : amax;  // a NaN does not count
    }
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(0xFFFFFFFFu, amax, step);
      amax = other > amax ? other : amax;
    }
    const float scale = power_scale(amax);
    for (int64_t i = begin + lane; i < end; i += kRowThreads) out[i] = e4m3_code(row[i] / scale);
    if (lane == 0) {
      const uint32_t bits = __float_as_uint(scale);
      scales[b] = static_cast<uint8_t>(bits == 0x00400000u ? 0u : bits >> 23);  // infinity: 255
    }
  }
}

/// Runs in blockIdx.y, their rows in blockIdx.x.
__global__ void encode_runs_kernel(const EntryFormat f, const float* rows, const EntryRun* runs) {
  const EntryRun run = runs[blockIdx.y];
  const int64_t i = blockIdx.x * static_cast<int64_t>(kRowsPerBlock) + threadIdx.y;
  if (i >= run.count) return;
  encode_row(f, rows + (run.first_row + i) * f.width, run.to + i * f.num_bytes);
}

__global__ void window_gather_kernel(const EntryFormat f, int64_t W, const WindowSegment* segments,
                                     const float* fresh, float* rows) {
  const WindowSegment s = segments[blockIdx.y];
  const int64_t j = blockIdx.x * static_cast<int64_t>(kRowsPerBlock) + threadIdx.y;
  if (j >= s.num_cached + s.num_tokens) return;
  float* out = rows + (s.first_row + j) * f.width;
  if (j < s.num_cached) {
    const int64_t position = s.start_pos - s.num_cached + j;
    const uint8_t* entry = s.ring + position % W * f.num_bytes;
    for (int64_t i = threadIdx.x; i < f.width; i += kRowThreads) {
      out[i] = entry_channel(f, entry, i);
    }
  } else {
    const float* from = fresh + (s.first_fresh + j - s.num_cached) * f.width;
    for (int64_t i = threadIdx.x; i < f.width; i += kRowThreads) out[i] = from[i];
  }
}

__global__ void window_keep_kernel(const EntryFormat f, int64_t W, const WindowKeep* rings,
                                   const float* fresh) {
  const WindowKeep r = rings[blockIdx.y];
  const int64_t first = r.num_fresh > W ? r.num_fresh - W : 0;
  const int64_t j = first + blockIdx.x * static_cast<int64_t>(kRowsPerBlock) + threadIdx.y;
  if (j >= r.num_fresh) return;
  encode_row(f, fresh + (r.first_fresh + j) * f.width,
             r.ring + (r.start_pos + j) % W * f.num_bytes);
}

/// A grid's second dimension takes no more.
constexpr size_t kMaxItems = 32768;

/// Launches in pieces of at most kMaxItems descriptors.
template <typename Item, typename Launch>
void for_pieces(Device& device, const std::vector<Item>& items, Launch&& launch) {
  for (size_t first = 0; first < items.size(); first += kMaxItems) {
    const std::vector<Item> piece(
        items.begin() + static_cast<int64_t>(first),
        items.begin() + static_cast<int64_t>(std::min(items.size(), first + kMaxItems)));
    const Scratch<Item> on_device(device, piece);
    launch(piece, on_device.get());
  }
}

dim3 row_grid(int64_t max_rows, size_t num_items) {
  return {blocks_for(max_rows, kRowsPerBlock), static_cast<unsigned>(num_items)};
}
const dim3 kBlock(kRowThreads, kRowsPerBlock);

}  // namespace

void encode_entry_runs(Device& device, const EntryFormat& format, const float* rows,
                       const std::vector<EntryRun>& runs) {
  for_pieces(device, runs, [&](const std::vector<EntryRun>& piece, const EntryRun* on_device) {
    int64_t max_rows = 0;
    for (const EntryRun& r : piece) max_rows = std::max(max_rows, r.count);
    if (max_rows == 0) return;
    FATHOM_LAUNCH(device, encode_runs_kernel, row_grid(max_rows, piece.size()), kBlock, 0, format,
                  rows, on_device);
  });
}

void window_gather(Device& device, const EntryFormat& format, int64_t W,
                   const std::vector<WindowSegment>& segments, const float* fresh, float* rows) {
  for_pieces(device, segments,
             [&](const std::vector<WindowSegment>& piece, const WindowSegment* on_device) {
               int64_t max_rows = 0;
               for (const WindowSegment& s : piece) {
                 max_rows = std::max(max_rows, s.num_cached + s.num_tokens);
               }
               if (max_rows == 0) return;
               FATHOM_LAUNCH(device, window_gather_kernel, row_grid(max_rows, piece.size()), kBlock,
                             0, format, W, on_device, fresh, rows);
             });
}

void window_keep(Device& device, const EntryFormat& format, int64_t W,
                 const std::vector<WindowKeep>& rings, const float* fresh) {
  for_pieces(device, rings, [&](const std::vector<WindowKeep>& piece, const WindowKeep* on_device) {
    int64_t max_rows = 0;
    for (const WindowKeep& r : piece) max_rows = std::max(max_rows, std::min(r.num_fresh, W));
    if (max_rows == 0) return;
    FATHOM_LAUNCH(device, window_keep_kernel, row_grid(max_rows, piece.size()), kBlock, 0, format,
                  W, on_device, fresh);
  });
}

}  // namespace fathom::cuda
