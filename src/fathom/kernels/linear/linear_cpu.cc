// All three products are one micro-kernel: R rows by P panels of 16 columns of the result stay in
// registers while a chain runs over the contraction index j,
//   acc[r][p] = fma(a[r, j], b[p][j][0..15], acc[r][p]),
// with `a` broadcast and `b` in panel layout. Panels of W serve the forward product as they are;
// for the two gradients a block of Wᵀ or of dy is copied into panels on the stack first. Chains
// that are longer than a block continue from the stored result, which changes no bits.
#include "fathom/kernels/linear/linear_cpu.h"

#include "fathom/numerics/simd.h"
#include "fathom/numerics/transpose.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

// The tile that fills the registers: 24 accumulators of 32 registers (AVX-512) or 12 of 16 (AVX2,
// where a panel takes two).
#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int kTilePanels = 4;
#else
constexpr int kTilePanels = 1;
#endif
constexpr int kTileRows = 6;

/// Inputs k for which a block of x is copied (24 KiB), and the stride from which it is.
constexpr int64_t kXBlockRows = 48;
constexpr int64_t kLongStride = 256;

/// Steps of a chain for which the panels of b of one tile stay in the first-level cache: 32 KiB
/// with kTilePanels = 4.
constexpr int64_t kBlockSteps = 128;

/// Levels of the tree over at most 8 parts.
constexpr int kMaxLevels = 3;

/// Panels at once for `rows` < kTileRows rows: enough independent chains to hide the latency of an
/// fma (8 on the machines that we know), as few rows are the decoding case.
constexpr int panels_for(int rows) {
  if (kTilePanels == 4) return rows <= 2 ? 8 : 4;
  return rows == 1 ? 4 : rows == 2 ? 2 : 1;
}

/// Where a[r, j] lies. Row-major input has the chain along a row; for dW it runs down a column.
enum class Along { kRow, kColumn };

/// One chain of `steps` terms for R rows and P panels. b: panel p, step j at b[p·b_panel + j·16].
template <int R, int P, Along kAlong>
inline __attribute__((always_inline)) void run_chain(F16 (&acc)[R][P], const float* a,
                                                     int64_t a_stride, const float* b,
                                                     int64_t b_panel, int64_t steps) {
  for (int64_t j = 0; j < steps; ++j) {
    F16 bj[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) bj[p] = load(b + p * b_panel + j * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const F16 arj = set1(kAlong == Along::kRow ? a[r * a_stride + j] : a[j * a_stride + r]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) acc[r][p] = fma(arj, bj[p], acc[r][p]);
    }
  }
}

/// The result: panel p of row r at c[r·row + p·panel]; the last panel of the matrix may be narrow.
struct Result {
  float* c;
  int64_t row, panel;
  int64_t width;  // columns of the last panel of this tile, 1..16
};

template <int R, int P>
inline __attribute__((always_inline)) void load_tile(F16 (&acc)[R][P], const Result& out) {
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      const float* at = out.c + r * out.row + p * out.panel;
      acc[r][p] = p + 1 < P || out.width == kLanes ? load(at) : load_first(at, out.width);
    }
  }
}

template <int R, int P>
inline __attribute__((always_inline)) void store_tile(const F16 (&acc)[R][P], const Result& out) {
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      float* at = out.c + r * out.row + p * out.panel;
      if (p + 1 < P || out.width == kLanes) {
        store(at, acc[r][p]);
      } else {
        store_first(at, acc[r][p], out.width);
      }
    }
  }
}

template <int R, int P>
inline __attribute__((always_inline)) void clear_tile(F16 (&acc)[R][P]) {
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) acc[r][p] = zero();
  }
}

/// Continues the chains of a tile from the stored result, or from 0 when `fresh`.
template <int R, int P, Along kAlong>
void continue_tile(const float* a, int64_t a_stride, const float* b, int64_t b_panel, int64_t steps,
                   const Result& out, bool fresh) {
  F16 acc[R][P];
  if (fresh) {
    clear_tile(acc);
  } else {
    load_tile(acc, out);
  }
  run_chain<R, P, kAlong>(acc, a, a_stride, b, b_panel, steps);
  store_tile(acc, out);
}

template <int R, int P>
inline __attribute__((always_inline)) void add_tile(const F16 (&left)[R][P], F16 (&acc)[R][P]) {
  for (int r = 0; r < R; ++r) {
    for (int q = 0; q < P; ++q) acc[r][q] = add(left[r][q], acc[r][q]);
  }
}

/// One part of the forward tile: a chain of `steps`, or chains of k_block steps added upwards.
template <int R, int P>
inline __attribute__((always_inline)) void run_part(F16 (&acc)[R][P], const LinearFwd& p,
                                                    const float* x, const float* w, int64_t steps) {
  const int64_t block = p.k_block > 0 && p.k_block < steps ? p.k_block : steps;
  F16 sum[R][P];
  for (int64_t k = 0; k < steps; k += block) {
    clear_tile(acc);
    run_chain<R, P, Along::kRow>(acc, x + k, p.x_stride, w + k * kLanes, p.K * kLanes,
                                 steps - k < block ? steps - k : block);
    if (block == steps) return;
    if (k > 0) add_tile(sum, acc);
    for (int r = 0; r < R; ++r) {
      for (int q = 0; q < P; ++q) sum[r][q] = acc[r][q];
    }
  }
}

/// The sum of the blocks so far is in `out`: adds the chain of the next `steps`.
template <int R, int P>
void add_block_tile(const float* x, int64_t x_stride, const float* w, int64_t w_panel,
                    int64_t steps, const Result& out, bool first) {
  F16 acc[R][P], sum[R][P];
  clear_tile(acc);
  run_chain<R, P, Along::kRow>(acc, x, x_stride, w, w_panel, steps);
  if (!first) {
    load_tile(sum, out);
    add_tile(sum, acc);
  }
  store_tile(acc, out);
}

/// The forward tile: num_parts parts of K / num_parts steps, combined by the pairwise tree. Part i
/// closes as many pairs as i + 1 has trailing zero bits; `open` holds the left halves.
template <int R, int P>
void forward_tile(const LinearFwd& p, const float* x, const float* w, const Result& out) {
  const int64_t steps = p.K / p.num_parts;
  F16 acc[R][P];
  F16 open[kMaxLevels][R][P];
  for (int part = 0; part < p.num_parts; ++part) {
    run_part(acc, p, x + part * steps, w + part * steps * kLanes, steps);
    if (p.num_parts == 1) break;
    int level = 0;
    for (; (part >> level) & 1; ++level) add_tile(open[level], acc);
    if (part + 1 < p.num_parts) {
      for (int r = 0; r < R; ++r) {
        for (int q = 0; q < P; ++q) open[level][r][q] = acc[r][q];
      }
    }
  }
  store_tile(acc, out);
}

/// Columns of panel `panel_end` - 1 of a matrix of `columns` columns.
inline int64_t last_width(int64_t columns, int64_t panel_end) {
  const int64_t beyond = panel_end * kPanelRows - columns;
  return beyond > 0 ? kPanelRows - beyond : kPanelRows;
}

/// Row tiles of R rows by P panels of the forward product, panels outside: a panel stays in the
/// cache while the rows pass by.
template <int R, int P>
void forward_rows(const LinearFwd& p, int64_t row_begin, int64_t row_end, int64_t panel,
                  int64_t panel_end) {
  for (; panel + P <= panel_end; panel += P) {
    const float* w = p.w_panels + panel * p.K * kPanelRows;
    if (R == kTileRows && p.num_parts == 1) {  // many rows: all of them pass a block of steps first
      const int64_t block = p.k_block > 0 ? p.k_block : kBlockSteps;
      for (int64_t k = 0; k < p.K; k += block) {
        const int64_t steps = p.K - k < block ? p.K - k : block;
        for (int64_t t = row_begin; t < row_end; t += R) {
          float* y = p.y + t * p.y_stride + panel * kPanelRows;
          const float* x = p.x + t * p.x_stride + k;
          const Result out{y, p.y_stride, kPanelRows, last_width(p.N, panel + P)};
          if (p.k_block > 0) {
            add_block_tile<R, P>(x, p.x_stride, w + k * kPanelRows, p.K * kPanelRows, steps, out,
                                 k == 0);
          } else {
            continue_tile<R, P, Along::kRow>(x, p.x_stride, w + k * kPanelRows, p.K * kPanelRows,
                                             steps, out, k == 0);
          }
        }
      }
      continue;
    }
    for (int64_t t = row_begin; t < row_end; t += R) {
      float* y = p.y + t * p.y_stride + panel * kPanelRows;
      forward_tile<R, P>(p, p.x + t * p.x_stride, w,
                         {y, p.y_stride, kPanelRows, last_width(p.N, panel + P)});
    }
  }
  if constexpr (P > 1) forward_rows<R, P / 2>(p, row_begin, row_end, panel, panel_end);
}

/// Continues the chains of `rows` rows and P panels over one block of b. Row r of a lies at
/// a + r·a_stride (along a row) or a + r (along a column).
template <int P, Along kAlong>
void continue_rows(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t steps,
                   Result out, bool fresh) {
  const int64_t a_row = kAlong == Along::kRow ? a_stride : 1;
  for (; rows >= kTileRows; rows -= kTileRows) {
    continue_tile<kTileRows, P, kAlong>(a, a_stride, b, kBlockSteps * kLanes, steps, out, fresh);
    a += kTileRows * a_row;
    out.c += kTileRows * out.row;
  }
  switch (rows) {
    case 1:
      return continue_tile<1, P, kAlong>(a, a_stride, b, kBlockSteps * kLanes, steps, out, fresh);
    case 2:
      return continue_tile<2, P, kAlong>(a, a_stride, b, kBlockSteps * kLanes, steps, out, fresh);
    case 3:
      return continue_tile<3, P, kAlong>(a, a_stride, b, kBlockSteps * kLanes, steps, out, fresh);
    case 4:
      return continue_tile<4, P, kAlong>(a, a_stride, b, kBlockSteps * kLanes, steps, out, fresh);
    case 5:
      return continue_tile<5, P, kAlong>(a, a_stride, b, kBlockSteps * kLanes, steps, out, fresh);
    default:
      return;
  }
}

/// Columns k .. k+15 of W for n in [n_begin, n_begin + steps) as one panel of Wᵀ: dst[n][16].
void transpose_panel(const LinearBwdInput& p, int64_t k, int64_t n_begin, int64_t steps,
                     float* dst) {
  for (int64_t n = 0; n < steps; n += kPanelRows) {
    const float* src = p.w_panels + ((n_begin + n) * p.K) + k * kPanelRows;
    alignas(64) float edge[kPanelRows * kPanelRows];
    if (k + kPanelRows > p.K) {  // zeros stand in for the columns beyond K
      for (int64_t i = 0; i < kPanelRows; ++i) {
        store(edge + i * kPanelRows, k + i < p.K ? load(src + i * kPanelRows) : zero());
      }
      src = edge;
    }
    transpose16(src, kPanelRows, dst + n * kPanelRows, kPanelRows);
  }
}

template <int P>
void bwd_input_panels(const LinearBwdInput& p, const Rectangle& part, int64_t panel) {
  alignas(64) float block[P * kBlockSteps * kLanes];
  for (; panel + P <= part.panel_end; panel += P) {
    const int64_t k = panel * kPanelRows;
    for (int64_t n = 0; n < p.N; n += kBlockSteps) {
      const int64_t steps = p.N - n < kBlockSteps ? p.N - n : kBlockSteps;
      for (int q = 0; q < P; ++q) {
        transpose_panel(p, k + q * kPanelRows, n, steps, block + q * kBlockSteps * kLanes);
      }
      continue_rows<P, Along::kRow>(part.row_end - part.row_begin,
                                    p.dy + part.row_begin * p.dy_stride + n, p.dy_stride, block,
                                    steps,
                                    {p.dx + part.row_begin * p.dx_stride + k, p.dx_stride,
                                     kPanelRows, last_width(p.K, panel + P)},
                                    n == 0 && !p.accumulate);
    }
  }
  if constexpr (P > 1) bwd_input_panels<P / 2>(p, part, panel);
}

/// Copies a [steps, width] piece of a row-major matrix to dst[q][j][16] for q < panels, zeros
/// beyond `width`.
void copy_panels(const float* src, int64_t src_stride, int64_t steps, int64_t width, int64_t panels,
                 float* dst) {
  // A tile's panels at once: more would be written a multiple of 4 KiB apart and meet in one set of
  // the cache.
  for (int64_t first = 0; first < panels; first += kTilePanels) {
    const int64_t end = first + kTilePanels < panels ? first + kTilePanels : panels;
    for (int64_t j = 0; j < steps; ++j) {
      for (int64_t q = first; q < end; ++q) {
        const float* from = src + j * src_stride + q * kPanelRows;
        const int64_t left = width - q * kPanelRows;
        store(dst + (q * kBlockSteps + j) * kLanes,
              left >= kPanelRows ? load(from) : load_first(from, left));
      }
    }
  }
}

/// Copies a [steps, width <= kXBlockRows] piece of a row-major matrix to rows kXBlockRows apart.
void copy_rows(const float* src, int64_t src_stride, int64_t steps, int64_t width, float* dst) {
  for (int64_t j = 0; j < steps; ++j) {
    for (int64_t i = 0; i < width; i += kLanes) {
      const float* from = src + j * src_stride + i;
      store(dst + j * kXBlockRows + i,
            width - i >= kLanes ? load(from) : load_first(from, width - i));
    }
  }
}

/// dW of the panels of one copied block of dy and of `rows` inputs k from `k` on. a: x[t, k] of the
/// block's first token, rows a_stride apart.
template <int P>
void bwd_weight_panels(const LinearBwdWeight& p, int64_t k, int64_t rows, const float* a,
                       int64_t a_stride, const float* dy_block, int64_t steps, int64_t panel,
                       int64_t panel_end) {
  for (; panel + P <= panel_end; panel += P) {
    // The narrow last panel writes its real rows only: padding stays zero even where x is not
    // finite.
    continue_rows<P, Along::kColumn>(rows, a, a_stride, dy_block, steps,
                                     {p.dw_panels + panel * kPanelRows * p.K + k * kPanelRows,
                                      kPanelRows, p.K * kPanelRows, last_width(p.N, panel + P)},
                                     false);
    dy_block += P * kBlockSteps * kLanes;
  }
  if constexpr (P > 1) {
    bwd_weight_panels<P / 2>(p, k, rows, a, a_stride, dy_block, steps, panel, panel_end);
  }
}

}  // namespace

void linear_fwd_rectangle(const LinearFwd& p, const Rectangle& part) {
  const int64_t rest = (part.row_end - part.row_begin) % kTileRows;
  const int64_t full = part.row_end - rest;
  const int64_t first = part.panel_begin, last = part.panel_end;
  if (full > part.row_begin) {
    forward_rows<kTileRows, kTilePanels>(p, part.row_begin, full, first, last);
  }
  switch (rest) {
    case 1:
      return forward_rows<1, panels_for(1)>(p, full, part.row_end, first, last);
    case 2:
      return forward_rows<2, panels_for(2)>(p, full, part.row_end, first, last);
    case 3:
      return forward_rows<3, panels_for(3)>(p, full, part.row_end, first, last);
    case 4:
      return forward_rows<4, panels_for(4)>(p, full, part.row_end, first, last);
    case 5:
      return forward_rows<5, panels_for(5)>(p, full, part.row_end, first, last);
    default:
      return;
  }
}

void linear_bwd_input_rectangle(const LinearBwdInput& p, const Rectangle& part) {
  bwd_input_panels<kTilePanels>(p, part, part.panel_begin);
}

void linear_bwd_weight_rectangle(const LinearBwdWeight& p, const Rectangle& part) {
  alignas(64) float dy_block[kBwdWeightPanels * kBlockSteps * kLanes];
  alignas(64) float x_block[kBlockSteps * kXBlockRows];
  const int64_t panels = part.panel_end - part.panel_begin, n = part.panel_begin * kPanelRows;
  const int64_t width = p.N - n < panels * kPanelRows ? p.N - n : panels * kPanelRows;
  // Rows of x far apart fall into few sets of the first-level cache: those are copied.
  const bool copy_x = p.x_stride >= kLongStride;
  for (int64_t t = 0; t < p.T; t += kBlockSteps) {
    const int64_t steps = p.T - t < kBlockSteps ? p.T - t : kBlockSteps;
    copy_panels(p.dy + t * p.dy_stride + n, p.dy_stride, steps, width, panels, dy_block);
    for (int64_t k = part.row_begin; k < part.row_end; k += kXBlockRows) {
      const int64_t rows = part.row_end - k < kXBlockRows ? part.row_end - k : kXBlockRows;
      const float* x = p.x + t * p.x_stride + k;
      if (copy_x) copy_rows(x, p.x_stride, steps, rows, x_block);
      bwd_weight_panels<kTilePanels>(p, k, rows, copy_x ? x_block : x,
                                     copy_x ? kXBlockRows : p.x_stride, dy_block, steps,
                                     part.panel_begin, part.panel_end);
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
