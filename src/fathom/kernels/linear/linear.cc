#include "fathom/kernels/linear/linear.h"

#include <algorithm>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/kernels/linear/linear_cpu.h"
#include "fathom/kernels/linear/linear_cuda.h"

namespace fathom {
namespace {

/// Fused multiply-adds that make handing work to another thread worth while (a few microseconds).
constexpr int64_t kRangeFmas = 1 << 18;
/// Results of the forward product come in rectangles of at most these sizes: x of one rectangle
/// stays in the second-level cache. 96 is a multiple of the tile's 6 rows.
constexpr int64_t kFwdRows = 96;
constexpr int64_t kFwdPanels = 16;
/// Tokens per rectangle of dx: large, because each rectangle transposes its part of W again.
constexpr int64_t kBwdInputRows = 384;
/// Panels per rectangle of dx: those that the AVX-512 tile takes at once.
constexpr int64_t kBwdInputPanels = 4;
/// Inputs k per rectangle of dW, at most and at least: each rectangle reads its part of dy again.
constexpr int64_t kBwdWeightRows = 192;
constexpr int64_t kBwdWeightMinRows = 48;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A rectangle of the result of one matrix of the group.
struct Item {
  int64_t group;
  Rectangle part;
};

void add_items(int64_t group, int64_t rows, int64_t row_step, int64_t panels, int64_t panel_step,
               std::vector<Item>& items) {
  for (int64_t r = 0; r < rows; r += row_step) {
    for (int64_t p = 0; p < panels; p += panel_step) {
      items.push_back(
          {group, {r, std::min(rows, r + row_step), p, std::min(panels, p + panel_step)}});
    }
  }
}

/// Inputs k per rectangle of dW: smaller while there would be too few rectangles for the threads.
int64_t bwd_weight_rows(const ExecContext& ctx, int64_t num_matrices, int64_t N, int64_t K) {
  const int64_t columns = num_matrices * ceil_div(N, kBwdWeightPanels * kPanelRows);
  int64_t rows = kBwdWeightRows;
  while (rows > kBwdWeightMinRows && ceil_div(K, rows) * columns < 2 * ctx.threads->num_threads()) {
    rows /= 2;
  }
  return rows;
}

/// Runs body(item) for all items on the threads, or inline when `fmas` are too few to share out.
template <typename Body>
void for_each_item(const ExecContext& ctx, const std::vector<Item>& items, int64_t fmas,
                   Body&& body) {
  const int64_t count = static_cast<int64_t>(items.size());
  if (count == 0) return;
  const int64_t grain =
      std::max<int64_t>(1, ceil_div(kRangeFmas, std::max<int64_t>(1, fmas / count)));
  ctx.threads->parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(items[static_cast<size_t>(i)]);
  });
}

void check_shape(int64_t T, int64_t N, int64_t K) {
  FATHOM_ASSERT(T >= 0 && N >= 1 && K >= 1, "T = ", T, ", N = ", N, ", K = ", K);
}

void check_parts(int64_t K, int num_parts, int64_t k_block) {
  FATHOM_ASSERT(k_block >= 0, "k_block = ", k_block);
  FATHOM_ASSERT(
      (num_parts == 1 || num_parts == 2 || num_parts == 4 || num_parts == 8) && K % num_parts == 0,
      "num_parts = ", num_parts, " must be 1, 2, 4 or 8 and divide K = ", K);
}

/// Checks the row ranges; returns the number of rows of all groups.
int64_t check_groups(const GroupedLinear& g) {
  FATHOM_ASSERT(g.num_groups >= 0 && (g.num_groups == 0 || g.row_begin[0] == 0),
                "num_groups = ", g.num_groups);
  int64_t rows = 0;
  for (int64_t i = 0; i < g.num_groups; ++i) {
    FATHOM_ASSERT(g.row_begin[i + 1] >= g.row_begin[i], "row_begin[", i, "] = ", g.row_begin[i],
                  ", row_begin[", i + 1, "] = ", g.row_begin[i + 1]);
    rows = g.row_begin[i + 1];
  }
  FATHOM_ASSERT(rows == g.num_rows, "num_rows = ", g.num_rows, ", the groups have ", rows);
  check_shape(rows, g.N, g.K);
  return rows;
}

}  // namespace

int num_row_parallel_parts(int64_t K, int64_t block) {
  for (const int parts : {8, 4, 2}) {
    if (K % (parts * block) == 0) return parts;
  }
  return 1;
}

void linear_fwd(const ExecContext& ctx, const LinearFwd& p) {
  check_shape(p.T, p.N, p.K);
  check_parts(p.K, p.num_parts, p.k_block);
  FATHOM_ASSERT(p.x_stride >= p.K && p.y_stride >= p.N, "x_stride = ", p.x_stride, ", K = ", p.K,
                ", y_stride = ", p.y_stride, ", N = ", p.N);
  if (p.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, linear_fwd, p);
  const int64_t panels = ceil_div(p.N, kPanelRows), fmas = p.T * p.N * p.K;
  if (fmas <= kRangeFmas) {
    FATHOM_CPU_DISPATCH(ctx, linear_fwd_rectangle, p, Rectangle{0, p.T, 0, panels});
    return;
  }
  std::vector<Item> items;
  add_items(0, p.T, kFwdRows, panels, kFwdPanels, items);
  for_each_item(ctx, items, fmas, [&](const Item& item) {
    FATHOM_CPU_DISPATCH(ctx, linear_fwd_rectangle, p, item.part);
  });
}

void linear_bwd_input(const ExecContext& ctx, const LinearBwdInput& p) {
  check_shape(p.T, p.N, p.K);
  FATHOM_ASSERT(p.dy_stride >= p.N && p.dx_stride >= p.K, "dy_stride = ", p.dy_stride,
                ", N = ", p.N, ", dx_stride = ", p.dx_stride, ", K = ", p.K);
  FATHOM_DEVICE_DISPATCH(ctx, linear_bwd_input, p);
  std::vector<Item> items;
  add_items(0, p.T, kBwdInputRows, ceil_div(p.K, kPanelRows), kBwdInputPanels, items);
  for_each_item(ctx, items, p.T * p.N * p.K, [&](const Item& item) {
    FATHOM_CPU_DISPATCH(ctx, linear_bwd_input_rectangle, p, item.part);
  });
}

void linear_bwd_weight(const ExecContext& ctx, const LinearBwdWeight& p) {
  check_shape(p.T, p.N, p.K);
  FATHOM_ASSERT(p.dy_stride >= p.N && p.x_stride >= p.K, "dy_stride = ", p.dy_stride, ", N = ", p.N,
                ", x_stride = ", p.x_stride, ", K = ", p.K);
  if (p.T == 0) return;
  FATHOM_DEVICE_DISPATCH(ctx, linear_bwd_weight, p);
  std::vector<Item> items;
  add_items(0, p.K, bwd_weight_rows(ctx, 1, p.N, p.K), ceil_div(p.N, kPanelRows), kBwdWeightPanels,
            items);
  for_each_item(ctx, items, p.T * p.N * p.K, [&](const Item& item) {
    FATHOM_CPU_DISPATCH(ctx, linear_bwd_weight_rectangle, p, item.part);
  });
}

void grouped_linear_fwd(const ExecContext& ctx, const GroupedLinear& g, const float* x,
                        const float* const* w_panels, float* y, int num_parts, int64_t k_block) {
  check_parts(g.K, num_parts, k_block);
  FATHOM_DEVICE_DISPATCH(ctx, grouped_linear_fwd, g, x, w_panels, y, num_parts, k_block);
  const int64_t rows = check_groups(g);
  std::vector<Item> items;
  for (int64_t i = 0; i < g.num_groups; ++i) {
    add_items(i, g.row_begin[i + 1] - g.row_begin[i], kFwdRows, ceil_div(g.N, kPanelRows),
              kFwdPanels, items);
  }
  for_each_item(ctx, items, rows * g.N * g.K, [&](const Item& item) {
    const int64_t first = g.row_begin[item.group], T = g.row_begin[item.group + 1] - first;
    const LinearFwd p{.x = x + first * g.K,
                      .x_stride = g.K,
                      .w_panels = w_panels[item.group],
                      .y = y + first * g.N,
                      .y_stride = g.N,
                      .T = T,
                      .N = g.N,
                      .K = g.K,
                      .num_parts = num_parts,
                      .k_block = k_block};
    FATHOM_CPU_DISPATCH(ctx, linear_fwd_rectangle, p, item.part);
  });
}

void grouped_linear_bwd_input(const ExecContext& ctx, const GroupedLinear& g, const float* dy,
                              const float* const* w_panels, float* dx, bool accumulate) {
  FATHOM_DEVICE_DISPATCH(ctx, grouped_linear_bwd_input, g, dy, w_panels, dx, accumulate);
  const int64_t rows = check_groups(g);
  std::vector<Item> items;
  for (int64_t i = 0; i < g.num_groups; ++i) {
    add_items(i, g.row_begin[i + 1] - g.row_begin[i], kBwdInputRows, ceil_div(g.K, kPanelRows),
              kBwdInputPanels, items);
  }
  for_each_item(ctx, items, rows * g.N * g.K, [&](const Item& item) {
    const int64_t first = g.row_begin[item.group], T = g.row_begin[item.group + 1] - first;
    const LinearBwdInput p{
        dy + first * g.N, g.N, w_panels[item.group], dx + first * g.K, g.K, T, g.N, g.K,
        accumulate};
    FATHOM_CPU_DISPATCH(ctx, linear_bwd_input_rectangle, p, item.part);
  });
}

void grouped_linear_bwd_weight(const ExecContext& ctx, const GroupedLinear& g, const float* x,
                               const float* dy, float* const* dw_panels) {
  FATHOM_DEVICE_DISPATCH(ctx, grouped_linear_bwd_weight, g, x, dy, dw_panels);
  const int64_t rows = check_groups(g);
  const int64_t row_step = bwd_weight_rows(ctx, g.num_groups, g.N, g.K);
  std::vector<Item> items;
  for (int64_t i = 0; i < g.num_groups; ++i) {
    if (dw_panels[i] == nullptr || g.row_begin[i + 1] == g.row_begin[i]) continue;
    add_items(i, g.K, row_step, ceil_div(g.N, kPanelRows), kBwdWeightPanels, items);
  }
  for_each_item(ctx, items, rows * g.N * g.K, [&](const Item& item) {
    const int64_t first = g.row_begin[item.group], T = g.row_begin[item.group + 1] - first;
    const LinearBwdWeight p{
        x + first * g.K, g.K, dy + first * g.N, g.N, dw_panels[item.group], T, g.N, g.K};
    FATHOM_CPU_DISPATCH(ctx, linear_bwd_weight_rectangle, p, item.part);
  });
}

}  // namespace fathom
