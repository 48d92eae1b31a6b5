#include "fathom/kernels/compressor/compressor.h"

#include <algorithm>
#include <limits>

#include "fathom/base/error.h"
#include "fathom/kernels/compressor/compressor_cpu.h"
#include "fathom/kernels/compressor/compressor_cuda.h"

namespace fathom {
namespace {

// A range of a parallel loop takes about this many (row, channel) steps.
constexpr int64_t kStepsPerRange = 8192;

void check_shape(int64_t ratio, int64_t coff, int64_t c) {
  FATHOM_ASSERT(ratio > 0 && c > 0, "ratio = ", ratio, ", c = ", c);
  FATHOM_ASSERT(coff == 1 || coff == 2, "coff = ", coff);
}

int64_t num_channel_blocks(int64_t channels) {
  return (channels + kCompressorChannels - 1) / kCompressorChannels;
}

int64_t block_grain(int64_t num_rows) {
  return std::max<int64_t>(1,
                           kStepsPerRange / (kCompressorChannels * std::max<int64_t>(1, num_rows)));
}

/// Zeros the gradients of columns [column, column + n) of rows [begin, end).
void clear(const CompressorBwd& p, int64_t begin, int64_t end, int64_t column, int64_t n) {
  for (int64_t t = begin; t < end; ++t) {
    std::fill_n(p.dv + t * p.coff * p.c + column, n, 0.0f);
    std::fill_n(p.dg + t * p.coff * p.c + column, n, 0.0f);
  }
}

}  // namespace

void compressor_state_clear(float* state, int64_t coff, int64_t c) {
  for (int64_t i = 0; i < coff; ++i) {
    std::fill_n(state + i * 3 * c, c, -std::numeric_limits<float>::infinity());
    std::fill_n(state + i * 3 * c + c, 2 * c, 0.0f);
  }
}

void compressor_fwd(const ExecContext& ctx, const CompressorFwd& p) {
  check_shape(p.ratio, p.coff, p.c);
  FATHOM_ASSERT(p.start_pos >= 0 && p.num_tokens >= 0, "start_pos = ", p.start_pos,
                ", num_tokens = ", p.num_tokens);
  if (ctx.device != nullptr) {
    return compressor_fwd_runs(ctx, p, {{0, 0, p.start_pos, p.num_tokens, p.state}});
  }
  ctx.threads->parallel_for(num_channel_blocks(p.c), block_grain(p.num_tokens * p.coff),
                            [&](int64_t begin, int64_t end) {
                              for (int64_t block = begin; block < end; ++block) {
                                const int64_t channel = block * kCompressorChannels;
                                const int64_t n = std::min(kCompressorChannels, p.c - channel);
                                FATHOM_CPU_DISPATCH(ctx, compressor_fwd_channels, p, channel, n);
                              }
                            });
}

void compressor_fwd_runs(const ExecContext& ctx, const CompressorFwd& p,
                         const std::vector<CompressorRun>& runs) {
  check_shape(p.ratio, p.coff, p.c);
  FATHOM_DEVICE_DISPATCH(ctx, compressor_fwd_runs, p, runs);
  std::vector<float> fresh;
  for (const CompressorRun& run : runs) {
    CompressorFwd one = p;
    one.v += run.first_row * p.coff * p.c;
    one.g += run.first_row * p.coff * p.c;
    one.entries += run.first_entry * p.c;
    one.start_pos = run.start_pos;
    one.num_tokens = run.num_tokens;
    one.state = run.state;
    if (run.state == nullptr) {
      fresh.resize(static_cast<size_t>(compressor_state_size(p.coff, p.c)));
      compressor_state_clear(fresh.data(), p.coff, p.c);
      one.state = fresh.data();
    }
    compressor_fwd(ctx, one);
  }
}

void compressor_bwd(const ExecContext& ctx, const CompressorBwd& p) {
  check_shape(p.ratio, p.coff, p.c);
  FATHOM_ASSERT(p.num_tokens >= 0, "num_tokens = ", p.num_tokens);
  FATHOM_DEVICE_DISPATCH(ctx, compressor_bwd, p);
  const int64_t num_entries = p.num_tokens / p.ratio, blocks = num_channel_blocks(p.c);
  // Rows that reach no complete entry: the open window, and with overlap the A half of the last
  // complete window.
  const int64_t complete = num_entries * p.ratio;
  clear(p, complete, p.num_tokens, 0, p.coff * p.c);
  if (p.coff == 2 && num_entries > 0) clear(p, complete - p.ratio, complete, 0, p.c);
  ctx.threads->parallel_for(
      num_entries * blocks, block_grain(2 * p.coff * p.ratio), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t channel = i % blocks * kCompressorChannels;
          const int64_t n = std::min(kCompressorChannels, p.c - channel);
          FATHOM_CPU_DISPATCH(ctx, compressor_bwd_entry, p, i / blocks, channel, n);
        }
      });
  if (p.dape == nullptr) return;
  const int64_t columns = p.coff * p.c;
  ctx.threads->parallel_for(num_channel_blocks(columns), block_grain(p.num_tokens),
                            [&](int64_t begin, int64_t end) {
                              for (int64_t block = begin; block < end; ++block) {
                                const int64_t column = block * kCompressorChannels;
                                const int64_t n = std::min(kCompressorChannels, columns - column);
                                FATHOM_CPU_DISPATCH(ctx, compressor_bwd_ape, p, column, n);
                              }
                            });
}

}  // namespace fathom
