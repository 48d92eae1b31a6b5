// Register-tiled fp32 products over the panel layout. Each output element is one fma chain; tiles
// only decide which elements are in flight together.
#include "fathom/kernels/linear/linear_cpu.h"

#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {
namespace {

// Tile sizes: accumulators + operands must fit the registers (32 of 512 bits, or 16 of 256 bits
// where a vector of 16 lanes takes two).
#if defined(__AVX512F__)
constexpr int kFwdTokens = 6, kFwdPanels = 4, kFwdDecodePanels = 8;
constexpr int kBwdVectors = 2, kBwdPanels = 2, kBwdCols = 12;
#else
constexpr int kFwdTokens = 3, kFwdPanels = 2, kFwdDecodePanels = 4;
constexpr int kBwdVectors = 1, kBwdPanels = 1, kBwdCols = 6;
#endif

constexpr int64_t kWeightTokenChunk = 128;  // tokens whose x and dy stay in cache across tiles

/// acc[t][p] = chain over k in [k_begin, k_end) from 0.
template <int T, int P>
inline void fwd_chain(const float* x, int64_t x_stride, const float* w, int64_t panel_size,
                      int64_t k_begin, int64_t k_end, F16 (&acc)[T][P]) {
  for (int t = 0; t < T; ++t) {
    for (int p = 0; p < P; ++p) acc[t][p] = zero();
  }
  for (int64_t k = k_begin; k < k_end; ++k) {
    F16 column[P];
    for (int p = 0; p < P; ++p) column[p] = load(w + p * panel_size + k * kPanelRows);
    for (int t = 0; t < T; ++t) {
      const F16 value = set1(x[t * x_stride + k]);
      for (int p = 0; p < P; ++p) acc[t][p] = fma(value, column[p], acc[t][p]);
    }
  }
}

template <int T, int P>
void fwd_block(const LinearFwd& q, int64_t t, int64_t panel) {
  const int64_t panel_size = q.K * kPanelRows;
  const float* x = q.x + t * q.x_stride;
  const float* w = q.w_panels + panel * panel_size;
  F16 acc[T][P];
  if (q.num_parts == 1) {
    fwd_chain<T, P>(x, q.x_stride, w, panel_size, 0, q.K, acc);
  } else {
    // Parts are combined by the balanced pairwise tree: neighbours first.
    F16 parts[8][T][P];
    const int64_t step = q.K / q.num_parts;
    for (int i = 0; i < q.num_parts; ++i) {
      fwd_chain<T, P>(x, q.x_stride, w, panel_size, i * step, (i + 1) * step, parts[i]);
    }
    for (int width = 1; width < q.num_parts; width *= 2) {
      for (int i = 0; i < q.num_parts; i += 2 * width) {
        for (int a = 0; a < T; ++a) {
          for (int b = 0; b < P; ++b) parts[i][a][b] = add(parts[i][a][b], parts[i + width][a][b]);
        }
      }
    }
    for (int a = 0; a < T; ++a) {
      for (int b = 0; b < P; ++b) acc[a][b] = parts[0][a][b];
    }
  }
  for (int a = 0; a < T; ++a) {
    float* y = q.y + (t + a) * q.y_stride + panel * kPanelRows;
    for (int b = 0; b < P; ++b) {
      const int64_t left = q.N - (panel + b) * kPanelRows;
      if (left >= kPanelRows) {
        store(y + b * kPanelRows, acc[a][b]);
      } else {
        store_first(y + b * kPanelRows, acc[a][b], left);
      }
    }
  }
}

template <int P>
void fwd_tokens(const LinearFwd& q, int64_t t_begin, int64_t t_end, int64_t panel) {
  int64_t t = t_begin;
  for (; t + kFwdTokens <= t_end; t += kFwdTokens) fwd_block<kFwdTokens, P>(q, t, panel);
  switch (t_end - t) {
    case 5:
      fwd_block<5, P>(q, t, panel);
      break;
    case 4:
      fwd_block<4, P>(q, t, panel);
      break;
    case 3:
      fwd_block<3, P>(q, t, panel);
      break;
    case 2:
      fwd_block<2, P>(q, t, panel);
      break;
    case 1:
      fwd_block<1, P>(q, t, panel);
      break;
    default:
      break;
  }
}

/// out[c][r] = in[r][c] for a block of 8 x 8.
inline void transpose8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + i * in_stride);
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(s[4 * i], s[4 * i + 2], 0xEE);
    r[4 * i + 2] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(s[4 * i + 1], s[4 * i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

/// out [cols, out_stride] = transpose of in [rows, cols]; columns rows..out_stride−1 of out are
/// zeroed.
void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out,
               int64_t out_stride) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    int64_t c = 0;
    for (; c + 8 <= cols; c += 8) {
      transpose8(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    }
    for (; c < cols; ++c) {
      for (int64_t i = 0; i < 8; ++i) out[c * out_stride + r + i] = in[(r + i) * in_stride + c];
    }
  }
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t i = r; i < rows; ++i) out[c * out_stride + i] = in[i * in_stride + c];
    for (int64_t i = rows; i < out_stride; ++i) out[c * out_stride + i] = 0.0f;
  }
}

/// Back: out [rows, cols] = transpose of in [cols, in_stride].
void transpose_back(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out,
                    int64_t out_stride) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    int64_t c = 0;
    for (; c + 8 <= cols; c += 8) {
      transpose8(in + c * in_stride + r, in_stride, out + r * out_stride + c, out_stride);
    }
    for (; c < cols; ++c) {
      for (int64_t i = 0; i < 8; ++i) out[(r + i) * out_stride + c] = in[c * in_stride + r + i];
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) out[r * out_stride + c] = in[c * in_stride + r];
  }
}

/// dxt[k][tokens] += chain over n for V token vectors and C columns; dxt and dyt are token-minor.
template <int V, int C>
void bwd_input_block(const float* dyt, const float* w_panels, int64_t N, int64_t K, int64_t k,
                     float* dxt) {
  F16 acc[C][V];
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < V; ++v) acc[c][v] = load(dxt + (k + c) * kLinearTokenBlock + v * kLanes);
  }
  for (int64_t n = 0; n < N; ++n) {
    const float* w = w_panels + (n / kPanelRows) * K * kPanelRows + k * kPanelRows + n % kPanelRows;
    F16 dy[V];
    for (int v = 0; v < V; ++v) dy[v] = load(dyt + n * kLinearTokenBlock + v * kLanes);
    for (int c = 0; c < C; ++c) {
      const F16 value = set1(w[c * kPanelRows]);
      for (int v = 0; v < V; ++v) acc[c][v] = fma(dy[v], value, acc[c][v]);
    }
  }
  for (int c = 0; c < C; ++c) {
    for (int v = 0; v < V; ++v) store(dxt + (k + c) * kLinearTokenBlock + v * kLanes, acc[c][v]);
  }
}

template <int P, int C>
void bwd_weight_block(const LinearBwdWeight& q, int64_t t_begin, int64_t t_end, int64_t panel,
                      int64_t k) {
  const int64_t panel_size = q.K * kPanelRows;
  float* dw = q.dw_panels + panel * panel_size + k * kPanelRows;
  F16 acc[P][C];
  for (int p = 0; p < P; ++p) {
    for (int c = 0; c < C; ++c) acc[p][c] = load(dw + p * panel_size + c * kPanelRows);
  }
  const int64_t last = q.N - (panel + P - 1) * kPanelRows;  // rows of the last panel of the block
  const bool is_full = last >= kPanelRows;
  for (int64_t t = t_begin; t < t_end; ++t) {
    const float* x = q.x + t * q.x_stride + k;
    const float* dy = q.dy + t * q.dy_stride + panel * kPanelRows;
    F16 rows[P];
    for (int p = 0; p + 1 < P; ++p) rows[p] = load(dy + p * kPanelRows);
    rows[P - 1] =
        is_full ? load(dy + (P - 1) * kPanelRows) : load_first(dy + (P - 1) * kPanelRows, last);
    for (int c = 0; c < C; ++c) {
      const F16 value = set1(x[c]);
      for (int p = 0; p < P; ++p) acc[p][c] = fma(rows[p], value, acc[p][c]);
    }
  }
  for (int p = 0; p < P; ++p) {
    for (int c = 0; c < C; ++c) store(dw + p * panel_size + c * kPanelRows, acc[p][c]);
  }
}

template <int P>
void bwd_weight_columns(const LinearBwdWeight& q, int64_t t_begin, int64_t t_end, int64_t panel,
                        int64_t k_begin, int64_t k_end) {
  int64_t k = k_begin;
  for (; k + kBwdCols <= k_end; k += kBwdCols) {
    bwd_weight_block<P, kBwdCols>(q, t_begin, t_end, panel, k);
  }
  for (; k + 4 <= k_end; k += 4) bwd_weight_block<P, 4>(q, t_begin, t_end, panel, k);
  for (; k < k_end; ++k) bwd_weight_block<P, 1>(q, t_begin, t_end, panel, k);
}

}  // namespace

void linear_fwd_tile(const LinearFwd& p, int64_t t_begin, int64_t t_end, int64_t panel_begin,
                     int64_t panel_end) {
  int64_t panel = panel_begin;
  if (t_end - t_begin == 1) {
    for (; panel + kFwdDecodePanels <= panel_end; panel += kFwdDecodePanels) {
      fwd_block<1, kFwdDecodePanels>(p, t_begin, panel);
    }
  }
  for (; panel + kFwdPanels <= panel_end; panel += kFwdPanels) {
    fwd_tokens<kFwdPanels>(p, t_begin, t_end, panel);
  }
  if (kFwdPanels > 2 && panel + 2 <= panel_end) {
    fwd_tokens<2>(p, t_begin, t_end, panel);
    panel += 2;
  }
  for (; panel < panel_end; ++panel) fwd_tokens<1>(p, t_begin, t_end, panel);
}

void linear_bwd_input_tokens(const LinearBwdInput& p, int64_t t_begin, int64_t t_end,
                             float* scratch) {
  float* dyt = scratch;
  float* dxt = scratch + p.N * kLinearTokenBlock;
  const int64_t rows = t_end - t_begin;
  transpose(p.dy + t_begin * p.dy_stride, p.dy_stride, rows, p.N, dyt, kLinearTokenBlock);
  if (p.accumulate) {
    transpose(p.dx + t_begin * p.dx_stride, p.dx_stride, rows, p.K, dxt, kLinearTokenBlock);
  } else {
    for (int64_t i = 0; i < p.K * kLinearTokenBlock; i += kLanes) store(dxt + i, zero());
  }
  const int64_t vectors = (rows + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < vectors; v += kBwdVectors) {
    const float* dy = dyt + v * kLanes;
    float* dx = dxt + v * kLanes;
    int64_t k = 0;
    for (; k + kBwdCols <= p.K; k += kBwdCols) {
      bwd_input_block<kBwdVectors, kBwdCols>(dy, p.w_panels, p.N, p.K, k, dx);
    }
    for (; k + 4 <= p.K; k += 4) {
      bwd_input_block<kBwdVectors, 4>(dy, p.w_panels, p.N, p.K, k, dx);
    }
    for (; k < p.K; ++k) bwd_input_block<kBwdVectors, 1>(dy, p.w_panels, p.N, p.K, k, dx);
  }
  transpose_back(dxt, kLinearTokenBlock, rows, p.K, p.dx + t_begin * p.dx_stride, p.dx_stride);
}

void linear_bwd_weight_tile(const LinearBwdWeight& p, int64_t panel_begin, int64_t panel_end,
                            int64_t k_begin, int64_t k_end) {
  for (int64_t t = 0; t < p.T; t += kWeightTokenChunk) {
    const int64_t t_end = t + kWeightTokenChunk < p.T ? t + kWeightTokenChunk : p.T;
    int64_t panel = panel_begin;
    for (; panel + kBwdPanels <= panel_end; panel += kBwdPanels) {
      bwd_weight_columns<kBwdPanels>(p, t, t_end, panel, k_begin, k_end);
    }
    for (; panel < panel_end; ++panel) {
      bwd_weight_columns<1>(p, t, t_end, panel, k_begin, k_end);
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
