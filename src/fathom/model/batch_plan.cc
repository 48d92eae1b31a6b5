#include "fathom/model/batch_plan.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/kernels/rope/rope.h"

namespace fathom {
namespace {

RotaryTable make_rotary_table(const ExecContext& ctx, const KernelArray<int64_t>& positions,
                              const KernelArray<float>& frequencies) {
  const int64_t n = positions.size(), half = frequencies.size();
  RotaryTable table{Tensor::empty(ctx, {n, half}), Tensor::empty(ctx, {n, half})};
  rope_table(ctx, positions.data(), n, frequencies.data(), half, table.cos.f32(), table.sin.f32());
  return table;
}

RatioPlan make_ratio_plan(const ExecContext& ctx, const Batch& batch, const BatchPlan& plan,
                          int64_t ratio, const KernelArray<float>& frequencies) {
  RatioPlan r;
  r.ratio = ratio;
  std::vector<int64_t> entry_begin = {0};
  std::vector<int32_t> num_visible;
  std::vector<int64_t> entry_positions;
  for (const Segment& s : batch.segments) {
    for (int64_t e = s.start_pos / ratio; e < (s.start_pos + s.num_tokens) / ratio; ++e) {
      entry_positions.push_back(e * ratio);
    }
    entry_begin.push_back(static_cast<int64_t>(entry_positions.size()));
  }
  for (int64_t position : plan.positions.host()) {
    num_visible.push_back(static_cast<int32_t>((position + 1) / ratio));
    r.max_visible = std::max(r.max_visible, (position + 1) / ratio);
  }
  r.entry_begin = {ctx, std::move(entry_begin)};
  r.num_visible = {ctx, std::move(num_visible)};
  r.entry_rope = make_rotary_table(ctx, {ctx, std::move(entry_positions)}, frequencies);
  return r;
}

}  // namespace

const RatioPlan& BatchPlan::ratio_plan(int64_t ratio) const {
  for (const RatioPlan& r : ratios) {
    if (r.ratio == ratio) return r;
  }
  throw InternalError(str_cat("no plan for ratio ", ratio));
}

BatchPlan make_batch_plan(const ExecContext& ctx, const ModelConfig& config, const Layout& layout,
                          const Batch& batch, bool for_mtp) {
  BatchPlan plan;
  plan.T = batch.num_tokens();
  plan.layout = &layout;
  plan.context_rows = layout.context_rows(plan.T);
  plan.stream_rows = layout.stream_rows(plan.T);
  plan.routed_rows = layout.routed_rows(plan.T);
  plan.S = static_cast<int64_t>(batch.segments.size());
  plan.row_begin.push_back(0);
  const int64_t W = config.sliding_window;
  std::vector<int64_t> positions, window_begin;
  std::vector<int32_t> segment_of, window_count;
  for (int64_t s = 0; s < plan.S; ++s) {
    const Segment& segment = batch.segments[static_cast<size_t>(s)];
    const int64_t cached = std::min(segment.start_pos, W - 1);
    plan.window_row.push_back(plan.num_window_rows);
    plan.num_cached.push_back(cached);
    for (int64_t i = 0; i < segment.num_tokens; ++i) {
      const int64_t position = segment.start_pos + i;
      const int64_t count = std::min(position + 1, W);
      positions.push_back(position);
      segment_of.push_back(static_cast<int32_t>(s));
      window_begin.push_back(plan.num_window_rows + cached + i + 1 - count);
      window_count.push_back(static_cast<int32_t>(count));
      plan.max_window = std::max(plan.max_window, count);
    }
    plan.num_window_rows += cached + segment.num_tokens;
    plan.row_begin.push_back(plan.row_begin.back() + segment.num_tokens);
  }
  plan.token_ids = {ctx, batch.token_ids};
  plan.positions = {ctx, std::move(positions)};
  plan.segment_of = {ctx, std::move(segment_of)};
  plan.window_begin = {ctx, std::move(window_begin)};
  plan.window_count = {ctx, std::move(window_count)};
  plan.no_entries = {ctx, std::vector<int32_t>(static_cast<size_t>(plan.T), 0)};
  plan.no_entry_begin = {ctx, std::vector<int64_t>(static_cast<size_t>(plan.S) + 1, 0)};

  bool any_plain = for_mtp;
  std::vector<int64_t> ratios;
  for (int64_t l = 0; !for_mtp && l < config.num_hidden_layers; ++l) {
    const int64_t ratio = config.ratio(l);
    if (ratio == 0) {
      any_plain = true;
    } else if (std::find(ratios.begin(), ratios.end(), ratio) == ratios.end()) {
      ratios.push_back(ratio);
    }
  }
  if (any_plain) {
    plan.plain_rope =
        make_rotary_table(ctx, plan.positions,
                          {ctx, rope_frequencies(config.qk_rope_head_dim, config.rope_theta, {})});
  }
  if (!ratios.empty()) {
    const KernelArray<float> frequencies(
        ctx,
        rope_frequencies(config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling));
    plan.compress_rope = make_rotary_table(ctx, plan.positions, frequencies);
    for (int64_t ratio : ratios) {
      plan.ratios.push_back(make_ratio_plan(ctx, batch, plan, ratio, frequencies));
    }
  }
  return plan;
}

}  // namespace fathom
