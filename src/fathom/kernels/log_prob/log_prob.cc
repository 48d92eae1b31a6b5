#include "fathom/kernels/log_prob/log_prob.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/kernels/linear/linear.h"
#include "fathom/kernels/log_prob/log_prob_cpu.h"
#include "fathom/kernels/log_prob/log_prob_cuda.h"

namespace fathom {
namespace {

constexpr int64_t kRowBlock = 128;      // rows whose logits are held at a time
constexpr int64_t kColumnBlock = 4096;  // and columns, a multiple of a panel: 2 MiB of logits
constexpr int64_t kRowGrain = 4;
constexpr SoftmaxStats kNoLogits = {-HUGE_VALF, 0, 0};

void check_request(const ExecContext& ctx, const LogProbFwd& p) {
  FATHOM_ASSERT(p.R >= 0 && p.D >= 1 && p.V >= 1, "R = ", p.R, ", D = ", p.D, ", V = ", p.V);
  FATHOM_CHECK(p.temperature > 0 && std::isfinite(p.temperature),
               "log_prob: the temperature must be positive and finite, got ", p.temperature);
  if (ctx.device != nullptr) return;  // the kernel checks the targets
  for (int64_t r = 0; r < p.R; ++r) {
    FATHOM_CHECK(p.targets[r] >= 0 && p.targets[r] < p.V, "log_prob: token id ", p.targets[r],
                 " at row ", r, " is outside the vocabulary of ", p.V, " tokens");
  }
}

/// Logits of rows [r0, r0 + rows) over columns [first, first + columns); first is on a panel.
void compute_logits(const ExecContext& ctx, const LogProbFwd& p, int64_t r0, int64_t rows,
                    int64_t first, int64_t columns, float* z, int64_t stride) {
  linear_fwd(ctx, {.x = p.hidden + r0 * p.D,
                   .x_stride = p.D,
                   .w_panels = p.w_panels + first * p.D,
                   .y = z,
                   .y_stride = stride,
                   .T = rows,
                   .N = columns,
                   .K = p.D});
}

std::unique_ptr<float[]> logit_scratch(const LogProbFwd& p, int64_t stride) {
  return std::unique_ptr<float[]>(
      new float[static_cast<size_t>(std::min(kRowBlock, p.R) * stride)]);
}

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/// Columns of whole chunks whose logits are held at a time.
int64_t column_group(int64_t vocab) {
  const int64_t chunk = vocab_chunk_size(vocab);
  return chunk * std::max<int64_t>(1, (kColumnBlock - kPanelRows) / chunk);
}

struct LogitScratch {
  float* z;
  int64_t stride;
};

/// run(scratch, first row, rows) for blocks of rows.
template <typename Run>
void for_row_blocks(const LogProbFwd& p, const VocabularyColumns& shard, const Run& run) {
  // Chunks need not start on a panel: up to 15 columns before the first one are computed too.
  const int64_t stride =
      round_up(std::min(column_group(p.V) + kPanelRows, shard.num_columns), kPanelRows);
  const auto scratch = logit_scratch(p, stride);
  for (int64_t r0 = 0; r0 < p.R; r0 += kRowBlock) {
    run(LogitScratch{scratch.get(), stride}, r0, std::min(kRowBlock, p.R - r0));
  }
}

/// Statistics [rows, chunks of the shard] and target logits of a block of rows.
void row_block_stats(const ExecContext& ctx, const LogProbFwd& p, const VocabularyColumns& shard,
                     const LogitScratch& scratch, int64_t r0, int64_t rows, SoftmaxStats* stats,
                     float* target_logits) {
  const int64_t chunk = vocab_chunk_size(p.V), group = column_group(p.V);
  const int64_t chunks = num_chunks(shard, p.V);
  // Columns are counted from the shard's first one.
  for (int64_t begin = 0; begin < shard.num_columns; begin += group) {
    const int64_t end = std::min(begin + group, shard.num_columns);
    const int64_t first = begin / kPanelRows * kPanelRows;
    compute_logits(ctx, p, r0, rows, first, end - first, scratch.z, scratch.stride);
    ctx.threads->parallel_for(rows, kRowGrain, [&](int64_t row_begin, int64_t row_end) {
      for (int64_t row = row_begin; row < row_end; ++row) {
        float* zr = scratch.z + row * scratch.stride + (begin - first);
        if (p.temperature != 1) {
          FATHOM_CPU_DISPATCH(ctx, divide_by_temperature, zr, end - begin, p.temperature);
        }
        for (int64_t c = begin; c < end; c += chunk) {
          stats[row * chunks + c / chunk] = FATHOM_CPU_DISPATCH(
              ctx, softmax_stats, zr + (c - begin), std::min(chunk, end - c), p.entropy != nullptr);
        }
        const int64_t y = p.targets[r0 + row] - shard.first_column;
        if (y >= begin && y < end) target_logits[row] = zr[y - begin];
      }
    });
  }
}

/// Results of rows [r0, r0 + rows) from their statistics, which begin at stats[0].
void merge_rows_of(const ExecContext& ctx, const LogProbFwd& p, int64_t chunks, int64_t r0,
                   int64_t rows, const SoftmaxStats* stats, const float* target_logits) {
  ctx.threads->parallel_for(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      SoftmaxStats s = kNoLogits;
      for (int64_t c = 0; c < chunks; ++c) {
        s = FATHOM_CPU_DISPATCH(ctx, merge_softmax_stats, s, stats[row * chunks + c]);
      }
      const float lse = FATHOM_CPU_DISPATCH(ctx, log_sum_exp_of, s);
      p.log_probs[r0 + row] = target_logits[row] - lse;
      if (p.lse != nullptr) p.lse[r0 + row] = lse;
      if (p.entropy != nullptr) p.entropy[r0 + row] = FATHOM_CPU_DISPATCH(ctx, entropy_of, s);
    }
  });
}

/// dhidden of a block of rows: one chain over each eighth of the chunks, eighths added by a
/// pairwise tree, so that ranks which have whole eighths have subtrees.
class HiddenParts {
 public:
  HiddenParts(const LogProbFwd& f, const VocabularyColumns& shard)
      : f_(f), columns_(vocab_chunk_size(f.V) * num_chunks_per_part(f.V)) {
    num_parts_ = std::max<int64_t>(1, (shard.num_columns + columns_ - 1) / columns_);
    const auto count = static_cast<size_t>(num_parts_ * std::min(kRowBlock, f.R) * f.D);
    values_.resize(count);
  }

  void begin_rows(int64_t rows) {
    rows_ = rows;
    std::fill_n(values_.begin(), num_parts_ * rows * f_.D, 0.0f);
  }

  /// Adds the columns [first, first + columns) of the shard. @param dz [rows, columns], the same
  /// afterwards.
  void add_block(const ExecContext& ctx, float* dz, int64_t stride, int64_t first,
                 int64_t columns) {
    for (int64_t part = first / columns_; part * columns_ < first + columns; ++part) {
      const int64_t begin = std::max(first, part * columns_);
      const int64_t end = std::min(first + columns, (part + 1) * columns_);
      const int64_t on_panel = begin / kPanelRows * kPanelRows;
      // A part need not start on a panel: zeros leave its chain as it is.
      std::vector<float> kept;
      for (int64_t row = 0; row < rows_; ++row) {
        float* at = dz + row * stride + on_panel - first;
        kept.insert(kept.end(), at, at + (begin - on_panel));
        std::fill_n(at, begin - on_panel, 0.0f);
      }
      linear_bwd_input(ctx, {.dy = dz + on_panel - first,
                             .dy_stride = stride,
                             .w_panels = f_.w_panels + on_panel * f_.D,
                             .dx = part_begin(part),
                             .dx_stride = f_.D,
                             .T = rows_,
                             .N = end - on_panel,
                             .K = f_.D,
                             .accumulate = true});
      for (int64_t row = 0; row < rows_; ++row) {
        std::copy_n(kept.begin() + row * (begin - on_panel), begin - on_panel,
                    dz + row * stride + on_panel - first);
      }
    }
  }

  void sum(const ExecContext& ctx, float* dhidden) {
    const int64_t n = rows_ * f_.D;
    ctx.threads->parallel_for(n, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t step = 1; step < num_parts_; step *= 2) {
        for (int64_t part = 0; part + step < num_parts_; part += 2 * step) {
          float* to = part_begin(part);
          const float* from = part_begin(part + step);
          for (int64_t i = begin; i < end; ++i) to[i] += from[i];
        }
      }
      std::copy_n(part_begin(0) + begin, end - begin, dhidden + begin);
    });
  }

 private:
  static int64_t num_chunks_per_part(int64_t vocab) { return (vocab + 8 * 3232 - 1) / (8 * 3232); }
  float* part_begin(int64_t part) { return values_.data() + part * rows_ * f_.D; }

  const LogProbFwd& f_;
  int64_t columns_;  // of a part
  int64_t num_parts_ = 1, rows_ = 0;
  std::vector<float> values_;  // [parts, rows, D]
};

}  // namespace

int64_t vocab_chunk_size(int64_t vocab) {
  const int64_t num_chunks = 8 * ((vocab + 8 * 3232 - 1) / (8 * 3232));
  return (vocab + num_chunks - 1) / num_chunks;
}

float log_sum_exp(const ExecContext& ctx, const float* z, int64_t vocab) {
  FATHOM_ASSERT(vocab >= 1, "vocab = ", vocab);
  const int64_t chunk = vocab_chunk_size(vocab);
  const int64_t num_chunks = (vocab + chunk - 1) / chunk;
  std::vector<SoftmaxStats> stats(static_cast<size_t>(num_chunks));
  // Below some 8,000 logits a second thread is not worth waking.
  const int64_t grain = std::max<int64_t>(1, 8192 / chunk);
  ctx.threads->parallel_for(num_chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t n = std::min(chunk, vocab - c * chunk);
      stats[static_cast<size_t>(c)] =
          FATHOM_CPU_DISPATCH(ctx, softmax_stats, z + c * chunk, n, /*with_entropy=*/false);
    }
  });
  SoftmaxStats all = kNoLogits;
  for (const SoftmaxStats& s : stats) {
    all = FATHOM_CPU_DISPATCH(ctx, merge_softmax_stats, all, s);
  }
  return FATHOM_CPU_DISPATCH(ctx, log_sum_exp_of, all);
}

int64_t num_chunks(const VocabularyColumns& shard, int64_t vocab) {
  const int64_t chunk = vocab_chunk_size(vocab);
  return (shard.num_columns + chunk - 1) / chunk;
}

void log_prob_shard_fwd(const ExecContext& ctx, const LogProbFwd& p, const VocabularyColumns& shard,
                        SoftmaxStats* stats, float* target_logits) {
  check_request(ctx, p);
  FATHOM_ASSERT(ctx.device == nullptr && shard.first_column % vocab_chunk_size(p.V) == 0);
  const int64_t chunks = num_chunks(shard, p.V);
  for_row_blocks(p, shard, [&](const LogitScratch& z, int64_t r0, int64_t rows) {
    row_block_stats(ctx, p, shard, z, r0, rows, stats + r0 * chunks, target_logits + r0);
  });
}

void log_prob_merge(const ExecContext& ctx, const LogProbFwd& p, int64_t num_chunks_of_row,
                    const SoftmaxStats* stats, const float* target_logits) {
  merge_rows_of(ctx, p, num_chunks_of_row, 0, p.R, stats, target_logits);
}

void log_prob_fwd(const ExecContext& ctx, const LogProbFwd& p) {
  check_request(ctx, p);
  if (p.R == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, log_prob_fwd, p);
  const VocabularyColumns all{0, p.V};
  const int64_t chunks = num_chunks(all, p.V);
  const auto block_rows = static_cast<size_t>(std::min(kRowBlock, p.R));
  std::vector<SoftmaxStats> stats(block_rows * static_cast<size_t>(chunks));
  std::vector<float> target_logits(block_rows);
  for_row_blocks(p, all, [&](const LogitScratch& z, int64_t r0, int64_t rows) {
    row_block_stats(ctx, p, all, z, r0, rows, stats.data(), target_logits.data());
    merge_rows_of(ctx, p, chunks, r0, rows, stats.data(), target_logits.data());
  });
}

void log_prob_bwd(const ExecContext& ctx, const LogProbBwd& p) {
  check_request(ctx, p.fwd);
  if (p.fwd.R == 0) return;
  FATHOM_ASSERT(p.fwd.lse != nullptr && (p.dentropy == nullptr || p.fwd.entropy != nullptr));
  FATHOM_DEVICE_DISPATCH(ctx, log_prob_bwd, p);
  log_prob_shard_bwd(ctx, p, {0, p.fwd.V});
}

void log_prob_shard_bwd(const ExecContext& ctx, const LogProbBwd& p,
                        const VocabularyColumns& shard) {
  const LogProbFwd& f = p.fwd;
  FATHOM_ASSERT(ctx.device == nullptr);
  const LogProbRowGrads grads{f.targets, f.lse, p.dlog_probs, f.entropy, p.dentropy};
  const int64_t stride = round_up(std::min(kColumnBlock, shard.num_columns), kPanelRows);
  const auto scratch = logit_scratch(f, stride);
  float* const z = scratch.get();
  HiddenParts parts(f, shard);

  // Row blocks upwards: the chain of dW over rows continues from block to block. Column blocks
  // upwards: so do the chains of dhidden's parts over the vocabulary.
  for (int64_t r0 = 0; r0 < f.R; r0 += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, f.R - r0);
    parts.begin_rows(rows);
    for (int64_t first = 0; first < shard.num_columns; first += kColumnBlock) {
      const int64_t columns = std::min(kColumnBlock, shard.num_columns - first);
      compute_logits(ctx, f, r0, rows, first, columns, z, stride);
      const LogitBlock block{z, stride, shard.first_column + first, columns, f.temperature};
      ctx.threads->parallel_for(rows, kRowGrain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          FATHOM_CPU_DISPATCH(ctx, logit_gradient_row, block, grads, row, r0 + row);
        }
      });
      if (p.dw_panels != nullptr) {
        linear_bwd_weight(ctx, {.x = f.hidden + r0 * f.D,
                                .x_stride = f.D,
                                .dy = z,
                                .dy_stride = stride,
                                .dw_panels = p.dw_panels + first * f.D,
                                .T = rows,
                                .N = columns,
                                .K = f.D});
      }
      parts.add_block(ctx, z, stride, first, columns);
    }
    parts.sum(ctx, p.dhidden + r0 * f.D);
  }
}

}  // namespace fathom
