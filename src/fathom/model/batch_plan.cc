#include "fathom/model/batch_plan.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/kernels/rope/rope.h"

namespace fathom {
namespace {

RotaryTable make_rotary_table(const ExecContext& ctx, const int64_t* positions, int64_t n,
                              const KernelArray<float>& frequencies) {
  const int64_t half = frequencies.size();
  RotaryTable table{Tensor::empty(ctx, {n, half}), Tensor::empty(ctx, {n, half})};
  rope_table(ctx, positions, n, frequencies.data(), half, table.cos.f32(), table.sin.f32());
  return table;
}

std::vector<RowRange> contexts(const Layout& layout, int64_t T) {
  std::vector<RowRange> ranges;
  for (int i = 0; i < layout.cp.size(); ++i) {
    ranges.push_back(share_of_rows({0, T}, i, layout.cp.size()));
  }
  return ranges;
}

/// Where the entries of one ratio are, in all of the batch.
struct EntryMap {
  const Batch& batch;
  const std::vector<int64_t>& row_begin;  // [S + 1]
  int64_t ratio, overlap;  // overlap: windows in front of its own that an entry pools
  std::vector<int64_t> entry_begin = {};  // [S + 1]

  int64_t segment_at(int64_t row) const {
    return std::upper_bound(row_begin.begin(), row_begin.end(), row) - row_begin.begin() - 1;
  }
  int64_t start_pos(int64_t s) const { return batch.segments[static_cast<size_t>(s)].start_pos; }
  /// How many entries have their last token before the row.
  int64_t entries_before(int64_t row) const {
    if (row >= row_begin.back()) return entry_begin.back();
    const int64_t s = segment_at(row);
    return entry_begin[static_cast<size_t>(s)] + windows_before(s, row) - start_pos(s) / ratio;
  }
  /// Windows of the segment's sequence that are complete before the row.
  int64_t windows_before(int64_t s, int64_t row) const {
    return (start_pos(s) + row - row_begin[static_cast<size_t>(s)]) / ratio;
  }
  /// What is pooled of segment s for the entries that end in the rows. first_entry is among all
  /// entries, first_row among all rows.
  PoolStretch stretch(int64_t s, RowRange rows) const {
    const int64_t begin = row_begin[static_cast<size_t>(s)];
    const int64_t low = std::max(begin, rows.begin);
    const int64_t high = std::min(row_begin[static_cast<size_t>(s) + 1], rows.end());
    const int64_t window = windows_before(s, low);
    int64_t position = start_pos(s) + low - begin, entry = entries_before(low);
    if (low > begin && windows_before(s, high) > window) {
      const int64_t first = std::max<int64_t>(0, window - overlap);
      position = first * ratio;
      entry -= window - first;
    }
    const int64_t first_row = begin + position - start_pos(s);
    return {.segment = s,
            .first_row = first_row,
            .first_entry = entry,
            .first_position = position,
            .num_tokens = high - first_row};
  }
};

/// Whose entries and rows are whose, and what this rank pools.
void share_entries(const EntryMap& map, const BatchPlan& plan, RatioPlan* r) {
  r->entries.group = r->token_rows.group = plan.layout->cp;
  r->token_rows.owned = plan.window_rows.owned;
  for (const RowRange& rows : plan.window_rows.owned) {
    const int64_t begin = map.entries_before(rows.begin), end = map.entries_before(rows.end());
    r->entries.owned.push_back({begin, end - begin});
    if (rows.count == 0) {
      r->entries.needed.push_back({begin, 0});
      r->token_rows.needed.push_back({rows.begin, 0});
      continue;
    }
    const int64_t first = map.segment_at(rows.begin);
    const int64_t seen = map.entry_begin[static_cast<size_t>(first)];
    r->entries.needed.push_back({seen, end - seen});
    const int64_t reach = map.stretch(first, rows).first_row;
    r->token_rows.needed.push_back({reach, rows.end() - reach});
  }
  const RowRange own = r->entries.own(), rows = plan.context_rows;
  for (int64_t s = 0; s < plan.S; ++s) {
    if (common_rows(
            {map.row_begin[static_cast<size_t>(s)],
             map.row_begin[static_cast<size_t>(s) + 1] - map.row_begin[static_cast<size_t>(s)]},
            rows)
            .count == 0) {
      continue;
    }
    PoolStretch stretch = map.stretch(s, rows);
    if (stretch.first_entry < own.begin) r->num_leads = own.begin - stretch.first_entry;
    stretch.first_row -= r->token_rows.seen().begin;
    stretch.first_entry += r->num_leads - own.begin;
    r->stretches.push_back(stretch);
  }
}

RatioPlan make_ratio_plan(const ExecContext& ctx, const Batch& batch, const BatchPlan& plan,
                          int64_t ratio, const KernelArray<float>& frequencies) {
  RatioPlan r;
  r.ratio = ratio;
  EntryMap map{.batch = batch,
               .row_begin = plan.row_begin,
               .ratio = ratio,
               .overlap = compressor_coff(ratio) - 1,
               .entry_begin = {0}};
  std::vector<int32_t> num_visible;
  std::vector<int64_t> entry_positions;
  for (const Segment& s : batch.segments) {
    for (int64_t e = s.start_pos / ratio; e < (s.start_pos + s.num_tokens) / ratio; ++e) {
      entry_positions.push_back(e * ratio);
    }
    map.entry_begin.push_back(static_cast<int64_t>(entry_positions.size()));
  }
  for (int64_t position : plan.positions.host()) {
    num_visible.push_back(static_cast<int32_t>((position + 1) / ratio));
    r.max_visible = std::max(r.max_visible, (position + 1) / ratio);
  }
  share_entries(map, plan, &r);
  r.num_visible = {ctx, std::move(num_visible)};
  const RowRange own = r.entries.own(), seen = r.entries.seen();
  const KernelArray<int64_t> positions(
      ctx, {entry_positions.begin() + own.begin, entry_positions.begin() + own.end()});
  r.entry_rope = make_rotary_table(ctx, positions.data(), positions.size(), frequencies);
  std::vector<int64_t> entry_begin;
  for (int64_t begin : map.entry_begin) {
    entry_begin.push_back(std::clamp(begin, seen.begin, seen.end()) - seen.begin);
  }
  r.entry_begin = {ctx, std::move(entry_begin)};
  return r;
}

/// Which rows are whose, and the rows in front of a context that its windows reach.
void share_rows(const Layout& layout, const std::vector<int64_t>& window_begin, BatchPlan* plan) {
  plan->context_rows = layout.context_rows(plan->T);
  plan->stream_rows = layout.stream_rows(plan->T);
  plan->window_rows.group = layout.cp;
  plan->window_rows.owned = contexts(layout, plan->T);
  for (const RowRange& rows : plan->window_rows.owned) {
    const int64_t reach =
        rows.count == 0 ? rows.begin : window_begin[static_cast<size_t>(rows.begin)];
    plan->window_rows.needed.push_back({reach, rows.end() - reach});
  }
  if (layout.cp.size() == 1) plan->window_rows.needed = plan->window_rows.owned;
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
  plan.layout = &layout;
  plan.T = batch.num_tokens();
  plan.routed_rows = layout.routed_rows(plan.T);
  plan.S = static_cast<int64_t>(batch.segments.size());
  plan.row_begin.push_back(0);
  const int64_t W = config.sliding_window;
  std::vector<int64_t> positions, window_begin;
  std::vector<int32_t> segment_of, window_count;
  for (int64_t s = 0; s < plan.S; ++s) {
    const Segment& segment = batch.segments[static_cast<size_t>(s)];
    const int64_t cached = std::min(segment.start_pos, W - 1);
    FATHOM_ASSERT(layout.cp.size() == 1 || segment.state == nullptr, "segment ", s,
                  " has a state, which context parallelism does not share");
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
  share_rows(layout, window_begin, &plan);
  if (layout.cp.size() > 1) {
    // Without states the buffer is the rows themselves, from where the context's windows reach.
    const RowRange seen = plan.window_rows.seen();
    for (int64_t& begin : window_begin) begin -= seen.begin;
    plan.num_window_rows = seen.count;
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
    plan.plain_rope = make_rotary_table(
        ctx, plan.positions.data() + plan.context_rows.begin, plan.context_rows.count,
        {ctx, rope_frequencies(config.qk_rope_head_dim, config.rope_theta, {})});
  }
  if (!ratios.empty()) {
    const KernelArray<float> frequencies(
        ctx,
        rope_frequencies(config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling));
    plan.compress_rope = make_rotary_table(ctx, plan.positions.data() + plan.context_rows.begin,
                                           plan.context_rows.count, frequencies);
    for (int64_t ratio : ratios) {
      plan.ratios.push_back(make_ratio_plan(ctx, batch, plan, ratio, frequencies));
    }
  }
  return plan;
}

}  // namespace fathom
