// All products are one kernel: a block makes a tile of 64 x 64 results, a thread 4 x 4 of them, and
// every result is one fma chain over the contraction in the order of linear.h. Pieces of 16 steps
// of both operands pass through shared memory. A plain version: no tensor cores, which sum
// otherwise.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/linear/linear_cuda.h"

namespace fathom::cuda {
namespace {

constexpr int kTile = 64, kSteps = 16, kThreads = 256, kEach = 4;

/// c[i, j] = sum over s of a[i, s] * b[j, s].
struct Product {
  const float* a;
  int64_t a_row, a_step;  // a[i, s] at a[i * a_row + s * a_step]
  const float* b;
  int64_t b_col, b_step;  // b[j, s] at b[j * b_col + s * b_step]
  float* c;
  int64_t c_row;  // c[i, j] at c[i * c_row + j]
  int64_t rows, cols, steps;
  bool accumulate;
  int num_parts;
  int64_t block;  // steps of a chain; 0: a part is one chain
};

using Tile = float[kSteps][kTile + 1];

/// Steps [s, s + count) of 64 rows from `first` on. Threads run along the direction in which memory
/// does.
__device__ inline void load_tile(const float* from, int64_t row_stride, int64_t step_stride,
                                 int64_t first, int64_t num_rows, int64_t s, int count, Tile& to) {
  const int t = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int r = 0; r < kTile * kSteps / kThreads; ++r) {
    const int at = t + r * kThreads;
    const int step = step_stride == 1 ? at % kSteps : at / kTile;
    const int row = step_stride == 1 ? at / kSteps : at % kTile;
    const bool inside = first + row < num_rows && step < count;
    to[step][row] = inside ? from[(first + row) * row_stride + (s + step) * step_stride] : 0.0f;
  }
}

/// Continues the chains of a thread's results over steps [begin, end).
__device__ inline void run_chain(const Product& p, int64_t row, int64_t col, int64_t begin,
                                 int64_t end, Tile& a, Tile& b, float (&acc)[kEach][kEach]) {
  const int ti = static_cast<int>(threadIdx.x) / 16, tj = static_cast<int>(threadIdx.x) % 16;
  const auto step = [&](int s) {
    float x[kEach], w[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) x[i] = a[s][ti + 16 * i];
#pragma unroll
    for (int j = 0; j < kEach; ++j) w[j] = b[s][tj + 16 * j];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) acc[i][j] = fmaf(x[i], w[j], acc[i][j]);
    }
  };
  for (int64_t s = begin; s < end; s += kSteps) {
    const int count = end - s < kSteps ? static_cast<int>(end - s) : kSteps;
    load_tile(p.a, p.a_row, p.a_step, row, p.rows, s, count, a);
    load_tile(p.b, p.b_col, p.b_step, col, p.cols, s, count, b);
    __syncthreads();
    // Adding 0 * 0 beyond the end would turn -0 into +0.
    if (count == kSteps) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) step(i);
    } else {
      for (int i = 0; i < count; ++i) step(i);
    }
    __syncthreads();
  }
}

__device__ inline void add_tile(const float (&left)[kEach][kEach], float (&acc)[kEach][kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) acc[i][j] = left[i][j] + acc[i][j];
  }
}

__device__ inline void copy_tile(const float (&from)[kEach][kEach], float (&to)[kEach][kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) to[i][j] = from[i][j];
  }
}

template <typename Use>
__device__ inline void for_each_result(const Product& p, int64_t row, int64_t col, Use&& use) {
  const int ti = static_cast<int>(threadIdx.x) / 16, tj = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t r = row + ti + 16 * i, c = col + tj + 16 * j;
      if (r < p.rows && c < p.cols) use(i, j, p.c + r * p.c_row + c);
    }
  }
}

/// The tile of results from (row, col) on.
template <bool kCut>
__device__ inline void product_tile(const Product& p, int64_t row, int64_t col) {
  __shared__ Tile a, b;
  float acc[kEach][kEach] = {};
  if constexpr (!kCut) {
    if (p.accumulate) {
      for_each_result(p, row, col, [&](int i, int j, const float* c) { acc[i][j] = *c; });
    }
    run_chain(p, row, col, 0, p.steps, a, b, acc);
  } else {
    float open[3][kEach][kEach];  // left halves of the pairwise tree
    const int64_t part_steps = p.steps / p.num_parts;
    const int64_t block = p.block > 0 && p.block < part_steps ? p.block : part_steps;
    for (int part = 0; part < p.num_parts; ++part) {
      const int64_t begin = part * part_steps, end = begin + part_steps;
      float sum[kEach][kEach];
      for (int64_t s = begin; s < end; s += block) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j) acc[i][j] = 0.0f;
        }
        run_chain(p, row, col, s, s + block < end ? s + block : end, a, b, acc);
        if (s > begin) add_tile(sum, acc);
        copy_tile(acc, sum);
      }
      // Part i closes as many pairs as i + 1 has trailing zero bits.
#pragma unroll
      for (int level = 0; level < 3; ++level) {
        const int ones = part & ((1 << level) - 1);
        const bool all_below = ones == (1 << level) - 1;
        if (!all_below) continue;
        if ((part >> level) & 1) {
          add_tile(open[level], acc);
        } else {
          copy_tile(acc, open[level]);
        }
      }
    }
  }
  for_each_result(p, row, col, [&](int i, int j, float* c) { *c = acc[i][j]; });
}

template <bool kCut>
__global__ void __launch_bounds__(kThreads) product_kernel(const Product p) {
  product_tile<kCut>(p, static_cast<int64_t>(blockIdx.y) * kTile,
                     static_cast<int64_t>(blockIdx.x) * kTile);
}

/// The group and the first of its rows that row tile number `tile` of all groups works on.
__device__ inline bool find_group(const int64_t* row_begin, int64_t num_groups, int64_t tile,
                                  int64_t* group, int64_t* row) {
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t tiles = (row_begin[g + 1] - row_begin[g] + kTile - 1) / kTile;
    if (tile < tiles) {
      *group = g;
      *row = tile * kTile;
      return true;
    }
    tile -= tiles;
  }
  return false;
}

/// p for one group of rows: a and c begin at the first row of the first group.
template <bool kCut>
__global__ void __launch_bounds__(kThreads)
    grouped_rows_kernel(const Product all, const GroupedLinear g, const float* const* w) {
  int64_t group, row;
  if (!find_group(g.row_begin, g.num_groups, blockIdx.y, &group, &row)) return;
  Product p = all;
  const int64_t first = g.row_begin[group];
  p.rows = g.row_begin[group + 1] - first;
  p.a += first * p.a_row;
  p.c += first * p.c_row;
  p.b = w[group];
  product_tile<kCut>(p, row, static_cast<int64_t>(blockIdx.x) * kTile);
}

/// dW of one matrix a block layer: the contraction is over the group's rows.
__global__ void __launch_bounds__(kThreads)
    grouped_weight_kernel(const Product all, const GroupedLinear g, float* const* dw) {
  const int64_t group = blockIdx.z, first = g.row_begin[group];
  Product p = all;
  p.steps = g.row_begin[group + 1] - first;
  p.c = dw[group];
  if (p.c == nullptr || p.steps == 0) return;
  p.a += first * p.a_step;
  p.b += first * p.b_step;
  product_tile<false>(p, static_cast<int64_t>(blockIdx.y) * kTile,
                      static_cast<int64_t>(blockIdx.x) * kTile);
}

dim3 tiles_of(const Product& p, unsigned groups = 1) {
  return {blocks_for(p.cols, kTile), blocks_for(p.rows, kTile), groups};
}

bool is_cut(const Product& p) { return p.num_parts > 1 || p.block > 0; }

void run(Device& device, const Product& p) {
  if (p.rows == 0 || p.cols == 0) return;
  if (is_cut(p)) {
    FATHOM_LAUNCH(device, product_kernel<true>, tiles_of(p), kThreads, 0, p);
  } else {
    FATHOM_LAUNCH(device, product_kernel<false>, tiles_of(p), kThreads, 0, p);
  }
}

void run_grouped(Device& device, const Product& p, const GroupedLinear& g, const float* const* w) {
  if (g.num_rows == 0) return;
  const dim3 grid(blocks_for(p.cols, kTile),
                  static_cast<unsigned>(g.num_rows / kTile + g.num_groups));
  if (is_cut(p)) {
    FATHOM_LAUNCH(device, grouped_rows_kernel<true>, grid, kThreads, 0, p, g, w);
  } else {
    FATHOM_LAUNCH(device, grouped_rows_kernel<false>, grid, kThreads, 0, p, g, w);
  }
}

}  // namespace

void linear_fwd(Device& device, const LinearFwd& p) {
  run(device, {.a = p.x,
               .a_row = p.x_stride,
               .a_step = 1,
               .b = p.w_panels,
               .b_col = p.K,
               .b_step = 1,
               .c = p.y,
               .c_row = p.y_stride,
               .rows = p.T,
               .cols = p.N,
               .steps = p.K,
               .accumulate = false,
               .num_parts = p.num_parts,
               .block = p.k_block});
}

void linear_bwd_input(Device& device, const LinearBwdInput& p) {
  run(device, {.a = p.dy,
               .a_row = p.dy_stride,
               .a_step = 1,
               .b = p.w_panels,
               .b_col = 1,
               .b_step = p.K,
               .c = p.dx,
               .c_row = p.dx_stride,
               .rows = p.T,
               .cols = p.K,
               .steps = p.N,
               .accumulate = p.accumulate,
               .num_parts = 1,
               .block = 0});
}

void linear_bwd_weight(Device& device, const LinearBwdWeight& p) {
  run(device, {.a = p.dy,
               .a_row = 1,
               .a_step = p.dy_stride,
               .b = p.x,
               .b_col = 1,
               .b_step = p.x_stride,
               .c = p.dw_panels,
               .c_row = p.K,
               .rows = p.N,
               .cols = p.K,
               .steps = p.T,
               .accumulate = true,
               .num_parts = 1,
               .block = 0});
}

void grouped_linear_fwd(Device& device, const GroupedLinear& g, const float* x,
                        const float* const* w, float* y, int num_parts, int64_t k_block) {
  run_grouped(device,
              {.a = x,
               .a_row = g.K,
               .a_step = 1,
               .b = nullptr,
               .b_col = g.K,
               .b_step = 1,
               .c = y,
               .c_row = g.N,
               .rows = 0,
               .cols = g.N,
               .steps = g.K,
               .accumulate = false,
               .num_parts = num_parts,
               .block = k_block},
              g, w);
}

void grouped_linear_bwd_input(Device& device, const GroupedLinear& g, const float* dy,
                              const float* const* w, float* dx, bool accumulate) {
  run_grouped(device,
              {.a = dy,
               .a_row = g.N,
               .a_step = 1,
               .b = nullptr,
               .b_col = 1,
               .b_step = g.K,
               .c = dx,
               .c_row = g.K,
               .rows = 0,
               .cols = g.K,
               .steps = g.N,
               .accumulate = accumulate,
               .num_parts = 1,
               .block = 0},
              g, w);
}

void grouped_linear_bwd_weight(Device& device, const GroupedLinear& g, const float* x,
                               const float* dy, float* const* dw) {
  if (g.num_rows == 0) return;
  const Product p = {.a = dy,
                     .a_row = 1,
                     .a_step = g.N,
                     .b = x,
                     .b_col = 1,
                     .b_step = g.K,
                     .c = nullptr,
                     .c_row = g.K,
                     .rows = g.N,
                     .cols = g.K,
                     .steps = 0,
                     .accumulate = true,
                     .num_parts = 1,
                     .block = 0};
  FATHOM_LAUNCH(device, grouped_weight_kernel, tiles_of(p, static_cast<unsigned>(g.num_groups)),
                kThreads, 0, p, g, dw);
}

}  // namespace fathom::cuda
