#include "fathom/kernels/linear/linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/kernels/linear/linear_cpu.h"

namespace fathom {
namespace {

// Products below this many multiply-adds run on the calling thread: waking another costs more.
constexpr int64_t kInlineMultiplyAdds = 24 * 1024;
constexpr int64_t kFwdTaskTokens = 96, kFwdTaskPanels = 8;
constexpr int64_t kWeightTaskPanels = 2, kWeightTaskCols = 48;

int64_t num_panels(int64_t N) { return (N + kPanelRows - 1) / kPanelRows; }
int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Runs body(i) for every task: inline when the whole product is small.
template <typename Body>
void run_tasks(const ExecContext& ctx, int64_t num_tasks, int64_t multiply_adds, Body&& body) {
  const int64_t grain = multiply_adds < kInlineMultiplyAdds ? num_tasks : 1;
  ctx.threads->parallel_for(num_tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

/// One piece of a grouped product.
struct GroupTask {
  int64_t group, t_begin, t_end, panel_begin, panel_end;
};

}  // namespace

int num_row_parallel_parts(int64_t K, int64_t block) {
  for (int parts : {8, 4, 2}) {
    if (K % parts == 0 && K / parts % block == 0) return parts;
  }
  return 1;
}

void pack_panels(const float* row_major, const PanelLayout& layout, float* panels) {
  std::memset(panels, 0, static_cast<size_t>(layout.size()) * sizeof(float));
  for (int64_t n = 0; n < layout.rows; ++n) {
    float* out = panels + layout.index(n, 0);
    for (int64_t k = 0; k < layout.cols; ++k) out[k * kPanelRows] = row_major[n * layout.cols + k];
  }
}

void unpack_panels(const float* panels, const PanelLayout& layout, float* row_major) {
  for (int64_t n = 0; n < layout.rows; ++n) {
    const float* in = panels + layout.index(n, 0);
    for (int64_t k = 0; k < layout.cols; ++k) row_major[n * layout.cols + k] = in[k * kPanelRows];
  }
}

void linear_fwd(const ExecContext& ctx, const LinearFwd& p) {
  if (p.T == 0 || p.N == 0) return;
  FATHOM_ASSERT(p.num_parts >= 1 && p.num_parts <= 8 && p.K % p.num_parts == 0, "K ", p.K, " in ",
                p.num_parts, " parts");
  const int64_t panels = num_panels(p.N);
  const int64_t token_tasks = div_up(p.T, kFwdTaskTokens),
                panel_tasks = div_up(panels, kFwdTaskPanels);
  run_tasks(ctx, token_tasks * panel_tasks, p.T * p.N * p.K, [&](int64_t i) {
    const int64_t t = i / panel_tasks * kFwdTaskTokens, panel = i % panel_tasks * kFwdTaskPanels;
    FATHOM_CPU_DISPATCH(ctx, linear_fwd_tile, p, t, std::min(p.T, t + kFwdTaskTokens), panel,
                        std::min(panels, panel + kFwdTaskPanels));
  });
}

void linear_bwd_input(const ExecContext& ctx, const LinearBwdInput& p) {
  const int64_t num_tasks = div_up(p.T, kLinearTokenBlock);
  const size_t scratch_size = static_cast<size_t>((p.N + p.K) * kLinearTokenBlock);
  const int64_t grain = p.T * p.N * p.K < kInlineMultiplyAdds ? num_tasks : 1;
  ctx.threads->parallel_for(num_tasks, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_size);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i * kLinearTokenBlock;
      FATHOM_CPU_DISPATCH(ctx, linear_bwd_input_tokens, p, t, std::min(p.T, t + kLinearTokenBlock),
                          scratch.data());
    }
  });
}

void linear_bwd_weight(const ExecContext& ctx, const LinearBwdWeight& p) {
  if (p.T == 0) return;
  const int64_t panels = num_panels(p.N);
  const int64_t panel_tasks = div_up(panels, kWeightTaskPanels);
  const int64_t col_tasks = div_up(p.K, kWeightTaskCols);
  run_tasks(ctx, panel_tasks * col_tasks, p.T * p.N * p.K, [&](int64_t i) {
    const int64_t panel = i / col_tasks * kWeightTaskPanels, k = i % col_tasks * kWeightTaskCols;
    FATHOM_CPU_DISPATCH(ctx, linear_bwd_weight_tile, p, panel,
                        std::min(panels, panel + kWeightTaskPanels), k,
                        std::min(p.K, k + kWeightTaskCols));
  });
}

void grouped_linear_fwd(const ExecContext& ctx, const GroupedLinear& g, const float* x,
                        const float* const* w_panels, float* y, int num_parts) {
  const int64_t panels = num_panels(g.N);
  std::vector<GroupTask> tasks;
  for (int64_t e = 0; e < g.num_groups; ++e) {
    for (int64_t t = g.row_begin[e]; t < g.row_begin[e + 1]; t += kFwdTaskTokens) {
      for (int64_t panel = 0; panel < panels; panel += kFwdTaskPanels) {
        tasks.push_back({e, t, std::min(g.row_begin[e + 1], t + kFwdTaskTokens), panel,
                         std::min(panels, panel + kFwdTaskPanels)});
      }
    }
  }
  const int64_t rows = g.row_begin[g.num_groups];
  run_tasks(ctx, static_cast<int64_t>(tasks.size()), rows * g.N * g.K, [&](int64_t i) {
    const GroupTask& task = tasks[static_cast<size_t>(i)];
    const LinearFwd p = {.x = x,
                         .x_stride = g.K,
                         .w_panels = w_panels[task.group],
                         .y = y,
                         .y_stride = g.N,
                         .T = rows,
                         .N = g.N,
                         .K = g.K,
                         .num_parts = num_parts};
    FATHOM_CPU_DISPATCH(ctx, linear_fwd_tile, p, task.t_begin, task.t_end, task.panel_begin,
                        task.panel_end);
  });
}

void grouped_linear_bwd_input(const ExecContext& ctx, const GroupedLinear& g, const float* dy,
                              const float* const* w_panels, float* dx, bool accumulate) {
  std::vector<GroupTask> tasks;
  for (int64_t e = 0; e < g.num_groups; ++e) {
    for (int64_t t = g.row_begin[e]; t < g.row_begin[e + 1]; t += kLinearTokenBlock) {
      tasks.push_back({e, t, std::min(g.row_begin[e + 1], t + kLinearTokenBlock), 0, 0});
    }
  }
  const int64_t rows = g.row_begin[g.num_groups], num_tasks = static_cast<int64_t>(tasks.size());
  const size_t scratch_size = static_cast<size_t>((g.N + g.K) * kLinearTokenBlock);
  const int64_t grain = rows * g.N * g.K < kInlineMultiplyAdds ? num_tasks : 1;
  ctx.threads->parallel_for(num_tasks, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_size);
    for (int64_t i = begin; i < end; ++i) {
      const GroupTask& task = tasks[static_cast<size_t>(i)];
      const LinearBwdInput p = {.dy = dy,
                                .dy_stride = g.N,
                                .w_panels = w_panels[task.group],
                                .dx = dx,
                                .dx_stride = g.K,
                                .T = rows,
                                .N = g.N,
                                .K = g.K,
                                .accumulate = accumulate};
      FATHOM_CPU_DISPATCH(ctx, linear_bwd_input_tokens, p, task.t_begin, task.t_end,
                          scratch.data());
    }
  });
}

void grouped_linear_bwd_weight(const ExecContext& ctx, const GroupedLinear& g, const float* x,
                               const float* dy, float* const* dw_panels) {
  const int64_t panels = num_panels(g.N);
  const int64_t panel_tasks = div_up(panels, kWeightTaskPanels);
  const int64_t rows = g.row_begin[g.num_groups];
  run_tasks(ctx, g.num_groups * panel_tasks, rows * g.N * g.K, [&](int64_t i) {
    const int64_t e = i / panel_tasks, panel = i % panel_tasks * kWeightTaskPanels;
    const int64_t begin = g.row_begin[e], count = g.row_begin[e + 1] - begin;
    if (count == 0 || dw_panels[e] == nullptr) return;
    const LinearBwdWeight p = {.x = x + begin * g.K,
                               .x_stride = g.K,
                               .dy = dy + begin * g.N,
                               .dy_stride = g.N,
                               .dw_panels = dw_panels[e],
                               .T = count,
                               .N = g.N,
                               .K = g.K};
    FATHOM_CPU_DISPATCH(ctx, linear_bwd_weight_tile, p, panel,
                        std::min(panels, panel + kWeightTaskPanels), 0, g.K);
  });
}

}  // namespace fathom
