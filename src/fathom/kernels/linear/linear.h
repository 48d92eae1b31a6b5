// Products with a weight matrix: y = x Wᵀ and its two gradients, fp32. Weights are in panel layout
// (panel.h) on the CPU and row-major, which is panels of one row, on a device.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"
#include "fathom/kernels/linear/panel.h"

namespace fathom {

/// Number of equal parts into which the contraction of a row-parallel product (wo_b, every w2) is
/// cut: the largest of 8, 4, 2 such that K / parts is a multiple of `block` (16 in fp32),
/// otherwise 1.
int num_row_parallel_parts(int64_t K, int64_t block = 16);

/// y[t,n] = Σ_k x[t,k] · W[n,k].
/// Order: with num_parts = P, K is cut into P equal parts; each part is one fp32 fma chain over k
/// upwards from 0; parts are combined by a balanced pairwise tree ((0+1)+(2+3))+... .
/// With k_block > 0 a part is cut into blocks of k_block (the last may be short): each block is one
/// chain from 0, and the blocks' sums are added upwards. Products of FP8 blocks are computed so:
/// scales are powers of two, so a block's chain over decoded values is that over codes, scaled.
/// One block of a PanelLayout: pass that block's panels with its rows as N.
/// T may be 0. Bits of a row do not depend on T, on other rows or on the number of threads.
struct LinearFwd {
  const float* x;         // [T, K]
  int64_t x_stride;       // floats between rows of x, >= K
  const float* w_panels;  // panel layout of [N, K]
  float* y;               // [T, N]
  int64_t y_stride;       // floats between rows of y, >= N
  int64_t T, N, K;
  int num_parts = 1;    // divides K
  int64_t k_block = 0;  // 0: a part is one chain
};
void linear_fwd(const ExecContext& ctx, const LinearFwd& p);

/// dx[t,k] (+)= Σ_n dy[t,n] · W[n,k], one fma chain over n upwards, starting from dx when
/// `accumulate`, else from 0.
struct LinearBwdInput {
  const float* dy;  // [T, N]
  int64_t dy_stride;
  const float* w_panels;  // panel layout of [N, K]
  float* dx;              // [T, K]
  int64_t dx_stride;
  int64_t T, N, K;
  bool accumulate = false;
};
void linear_bwd_input(const ExecContext& ctx, const LinearBwdInput& p);

/// dW[n,k] += Σ_t dy[t,n] · x[t,k], one fma chain over t upwards that starts from the value in dW,
/// so that cutting a batch into micro-batches changes no bits. Padding rows stay zero.
struct LinearBwdWeight {
  const float* x;  // [T, K]
  int64_t x_stride;
  const float* dy;  // [T, N]
  int64_t dy_stride;
  float* dw_panels;  // panel layout of [N, K]
  int64_t T, N, K;
};
void linear_bwd_weight(const ExecContext& ctx, const LinearBwdWeight& p);

/// The same three products for many weight matrices of one shape (routed experts): group g owns
/// rows row_begin[g] .. row_begin[g+1] of x and y and the matrix w_panels[g]. Empty groups are
/// skipped. Per row and per element the arithmetic is that of the functions above.
/// On a device all arrays lie there, row_begin and the tables of pointers too.
struct GroupedLinear {
  int64_t num_groups;
  const int64_t* row_begin;  // [num_groups + 1], ascending, row_begin[0] = 0
  int64_t N, K;
  int64_t num_rows;  // row_begin[num_groups]
};
/// y [R, N] = x [R, K] · W_g(row)ᵀ, rows contiguous.
void grouped_linear_fwd(const ExecContext& ctx, const GroupedLinear& g, const float* x,
                        const float* const* w_panels, float* y, int num_parts = 1,
                        int64_t k_block = 0);
/// dx [R, K] = dy [R, N] · W_g(row)   (added to dx when accumulate, continuing its chain)
void grouped_linear_bwd_input(const ExecContext& ctx, const GroupedLinear& g, const float* dy,
                              const float* const* w_panels, float* dx, bool accumulate);
/// dW_g += dyᵀ x over the group's rows in order. dw_panels[g] may be null: that group is skipped.
void grouped_linear_bwd_weight(const ExecContext& ctx, const GroupedLinear& g, const float* x,
                               const float* dy, float* const* dw_panels);

}  // namespace fathom
