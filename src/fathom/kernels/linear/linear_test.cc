#include "fathom/kernels/linear/linear.h"

#include <algorithm>
#include <limits>

#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/linear/linear_ref.h"

namespace fathom {
namespace {

using Floats = std::vector<float>;

struct Shape {
  int64_t T, N, K;
};

// Tiles of 6 rows, panels of 16, groups of 4 panels, blocks of 128 steps, rectangles of 96 rows and
// 16 panels: sizes below, at and above each.
const std::vector<Shape> kShapes = {
    {0, 16, 16},   {1, 1, 1},     {1, 24, 17},    {1, 300, 40},   {2, 272, 33},  {3, 100, 16},
    {4, 64, 64},   {5, 33, 130},  {6, 48, 7},     {7, 16, 129},   {13, 80, 65},  {97, 40, 50},
    {200, 64, 64}, {131, 20, 31}, {260, 130, 24}, {100, 280, 40}, {390, 20, 70}, {129, 65, 97},
};

size_t at(int64_t i) { return static_cast<size_t>(i); }

/// The layout of a weight where the tests run.
PanelLayout weight(int64_t rows, int64_t cols, int64_t num_blocks = 1) {
  return {rows, cols, num_blocks, kWeightPanelRows};
}

Floats pack(const Floats& row_major, const PanelLayout& layout) {
  if (layout.panel_rows == 1) return row_major;
  Floats panels(at(layout.size()), 7.0f);
  pack_panels(row_major.data(), layout, panels.data());
  return panels;
}

Floats unpack(const Floats& panels, const PanelLayout& layout) {
  if (layout.panel_rows == 1) return panels;
  Floats row_major(at(layout.rows * layout.cols), 7.0f);
  unpack_panels(panels.data(), layout, row_major.data());
  return row_major;
}

// The contract of linear.h, one element at a time.
float chain(float start, int64_t steps, const float* a, int64_t a_step, const float* b,
            int64_t b_step) {
  float sum = start;
  for (int64_t j = 0; j < steps; ++j) sum = std::fma(a[j * a_step], b[j * b_step], sum);
  return sum;
}

float chain_tree(int parts, int64_t steps, const float* a, const float* b) {
  if (parts == 1) return chain(0, steps, a, 1, b, 1);
  const int half = parts / 2;
  return chain_tree(half, steps, a, b) +
         chain_tree(half, steps, a + half * steps, b + half * steps);
}

Floats fwd_in_order(const Shape& s, const Floats& x, const Floats& w, int parts) {
  Floats y(at(s.T * s.N));
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t n = 0; n < s.N; ++n) {
      y[at(t * s.N + n)] = chain_tree(parts, s.K / parts, x.data() + t * s.K, w.data() + n * s.K);
    }
  }
  return y;
}

Floats bwd_input_in_order(const Shape& s, const Floats& dy, const Floats& w, Floats dx) {
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t k = 0; k < s.K; ++k) {
      float& sum = dx[at(t * s.K + k)];
      sum = chain(sum, s.N, dy.data() + t * s.N, 1, w.data() + k, s.K);
    }
  }
  return dx;
}

Floats bwd_weight_in_order(const Shape& s, const Floats& x, const Floats& dy, Floats dw) {
  for (int64_t n = 0; n < s.N; ++n) {
    for (int64_t k = 0; k < s.K; ++k) {
      float& sum = dw[at(n * s.K + k)];
      sum = chain(sum, s.T, dy.data() + n, s.N, x.data() + k, s.K);
    }
  }
  return dw;
}

std::string name_of(const std::string& context, const Shape& s) {
  return context + ", T " + std::to_string(s.T) + " N " + std::to_string(s.N) + " K " +
         std::to_string(s.K);
}

// Rows spread to `stride` floats; the gaps hold `gap`.
Floats spread(const Floats& dense, int64_t rows, int64_t cols, int64_t stride, float gap) {
  Floats out(at(rows * stride), gap);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) out[at(r * stride + c)] = dense[at(r * cols + c)];
  }
  return out;
}

TEST(PanelTest, IndexPackAndUnpackAgree) {
  for (const PanelLayout layout : {PanelLayout{40, 5, 1}, PanelLayout{16, 3, 1},
                                   PanelLayout{40, 7, 2}, PanelLayout{4, 3, 4}}) {
    Floats w(at(layout.rows * layout.cols));
    for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i + 1);
    const Floats panels = pack(w, layout);
    size_t nonzero = 0;
    for (const float v : panels) nonzero += v != 0;
    EXPECT_EQ(nonzero, w.size());  // everything else is padding and zero
    for (int64_t n = 0; n < layout.rows; ++n) {
      for (int64_t k = 0; k < layout.cols; ++k) {
        EXPECT_EQ(panels[at(layout.index(n, k))], w[at(n * layout.cols + k)]);
      }
    }
    expect_same_bits(unpack(panels, layout), w, "unpack");
  }
}

TEST(LinearTest, PartsOfARowParallelProduct) {
  EXPECT_EQ(num_row_parallel_parts(128), 8);
  EXPECT_EQ(num_row_parallel_parts(64), 4);
  EXPECT_EQ(num_row_parallel_parts(96), 2);
  EXPECT_EQ(num_row_parallel_parts(48), 1);
  EXPECT_EQ(num_row_parallel_parts(1024, 128), 8);
  EXPECT_EQ(num_row_parallel_parts(256, 128), 2);
}

// A part in blocks: a chain from 0 for each, added upwards.
Floats fwd_in_blocks(const Shape& s, const Floats& x, const Floats& w, int parts, int64_t block) {
  const int64_t steps = s.K / parts;
  Floats y(at(s.T * s.N));
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t n = 0; n < s.N; ++n) {
      std::vector<float> sums;
      for (int part = 0; part < parts; ++part) {
        float sum = 0;
        for (int64_t k = 0; k < steps; k += block) {
          const float* a = x.data() + t * s.K + part * steps + k;
          const float* b = w.data() + n * s.K + part * steps + k;
          const float one = chain(0, std::min(block, steps - k), a, 1, b, 1);
          sum = k == 0 ? one : sum + one;
        }
        sums.push_back(sum);
      }
      while (sums.size() > 1) {  // the balanced tree
        for (size_t i = 0; i < sums.size() / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
        sums.resize(sums.size() / 2);
      }
      y[at(t * s.N + n)] = sums[0];
    }
  }
  return y;
}

TEST(LinearTest, BlocksOfAPartAreChainsAddedUpwards) {
  const std::vector<Shape> shapes = {{1, 300, 256}, {1, 24, 17},   {2, 272, 512},  {5, 33, 130},
                                     {7, 16, 129},  {13, 80, 384}, {100, 70, 300}, {200, 64, 128}};
  for (const Shape& s : shapes) {
    const Floats x = random_floats(s.T * s.K, -1, 1, 5), w = random_floats(s.N * s.K, -1, 1, 6);
    const Floats panels = pack(w, weight(s.N, s.K));
    for (const int64_t block : {128, 32, 5}) {
      for (const int parts : {1, 2, 4}) {
        if (s.K % parts != 0) continue;
        const Floats expected = fwd_in_blocks(s, x, w, parts, block);
        const std::string what = str_cat(" block ", block, " parts ", parts);
        if (block < s.K / parts && s.K > 200) {  // another order, seen by its bits
          EXPECT_NE(expected, fwd_in_order(s, x, w, parts)) << what;
        }
        for_each_context([&](const ExecContext& ctx, const std::string& context) {
          Floats y(at(s.T * s.N), 9.0f);
          linear_fwd(ctx,
                     {x.data(), s.K, panels.data(), y.data(), s.N, s.T, s.N, s.K, parts, block});
          expect_same_bits(y, expected, name_of(context, s) + what);
          // Two groups with the same matrix.
          const int64_t begin[] = {0, s.T / 3, s.T};
          const float* matrices[] = {panels.data(), panels.data()};
          Floats grouped(at(s.T * s.N), 9.0f);
          grouped_linear_fwd(ctx, {2, begin, s.N, s.K, s.T}, x.data(), matrices, grouped.data(),
                             parts, block);
          expect_same_bits(grouped, expected, name_of(context, s) + what + " grouped");
        });
      }
    }
  }
}

TEST(LinearTest, ForwardIsOneChainPerElement) {
  for (const Shape& s : kShapes) {
    const Floats x = random_floats(s.T * s.K, -1, 1, 1), w = random_floats(s.N * s.K, -1, 1, 2);
    const Floats panels = pack(w, weight(s.N, s.K));
    const Floats expected = fwd_in_order(s, x, w, 1);
    // A chain of K roundings of partial sums below K.
    const double kd = static_cast<double>(s.K);
    expect_close(expected, linear_fwd_ref(s.T, s.N, s.K, to_double(x), to_double(w)),
                 kd * kd * 0x1p-24, 0, name_of("chain", s));
    const int64_t xs = s.K + 3, ys = s.N + 5;
    const Floats x_wide = spread(x, s.T, s.K, xs, 1e30f);
    for_each_context([&](const ExecContext& ctx, const std::string& context) {
      Floats y(at(s.T * s.N), 9.0f), y_wide(at(s.T * ys), 3.0f);
      linear_fwd(ctx, {x.data(), s.K, panels.data(), y.data(), s.N, s.T, s.N, s.K});
      expect_same_bits(y, expected, name_of(context, s));
      linear_fwd(ctx, {x_wide.data(), xs, panels.data(), y_wide.data(), ys, s.T, s.N, s.K});
      expect_same_bits(y_wide, spread(expected, s.T, s.N, ys, 3.0f),
                       name_of(context, s) + ", strided");
    });
  }
}

TEST(LinearTest, PartsAreCombinedByThePairwiseTree) {
  for (const Shape& s : {Shape{1, 40, 128}, Shape{2, 100, 64}, Shape{7, 64, 256},
                         Shape{150, 30, 48}, Shape{3, 16, 8}}) {
    const Floats x = random_floats(s.T * s.K, -1, 1, 3), w = random_floats(s.N * s.K, -1, 1, 4);
    const Floats panels = pack(w, weight(s.N, s.K));
    for (const int parts : {1, 2, 4, 8}) {
      const Floats expected = fwd_in_order(s, x, w, parts);
      for_each_context([&](const ExecContext& ctx, const std::string& context) {
        Floats y(at(s.T * s.N));
        linear_fwd(ctx, {x.data(), s.K, panels.data(), y.data(), s.N, s.T, s.N, s.K, parts});
        expect_same_bits(y, expected, name_of(context, s) + ", parts " + std::to_string(parts));
      });
    }
  }
}

TEST(LinearTest, OneBlockOfABlockedLayoutIsAMatrixOfItsOwn) {
  const int64_t blocks = 3, n = 20, K = 33, T = 9;
  const Floats x = random_floats(T * K, -1, 1, 5), w = random_floats(blocks * n * K, -1, 1, 6);
  const PanelLayout layout = weight(blocks * n, K, blocks);
  const Floats panels = pack(w, layout);
  for_each_context([&](const ExecContext& ctx, const std::string& context) {
    for (int64_t b = 0; b < blocks; ++b) {
      Floats y(at(T * n));
      linear_fwd(ctx, {x.data(), K, panels.data() + b * layout.block_size(), y.data(), n, T, n, K});
      const Floats wb(w.begin() + b * n * K, w.begin() + (b + 1) * n * K);
      expect_same_bits(y, fwd_in_order({T, n, K}, x, wb, 1), context);
    }
  });
}

TEST(LinearTest, InputGradientIsOneChainPerElement) {
  for (const Shape& s : kShapes) {
    const Floats dy = random_floats(s.T * s.N, -1, 1, 7), w = random_floats(s.N * s.K, -1, 1, 8),
                 before = random_floats(s.T * s.K, -1, 1, 9);
    const Floats panels = pack(w, weight(s.N, s.K));
    const Floats fresh = bwd_input_in_order(s, dy, w, Floats(before.size()));
    const Floats added = bwd_input_in_order(s, dy, w, before);
    const double nd = static_cast<double>(s.N);
    expect_close(fresh, linear_bwd_input_ref(s.T, s.N, s.K, to_double(dy), to_double(w)),
                 nd * nd * 0x1p-24, 0, name_of("chain", s));
    const int64_t dys = s.N + 1, dxs = s.K + 2;
    const Floats dy_wide = spread(dy, s.T, s.N, dys, 1e30f);
    for_each_context([&](const ExecContext& ctx, const std::string& context) {
      Floats dx(before.size(), 9.0f), dx_wide = spread(before, s.T, s.K, dxs, 3.0f);
      linear_bwd_input(ctx, {dy.data(), s.N, panels.data(), dx.data(), s.K, s.T, s.N, s.K});
      expect_same_bits(dx, fresh, name_of(context, s));
      linear_bwd_input(
          ctx, {dy_wide.data(), dys, panels.data(), dx_wide.data(), dxs, s.T, s.N, s.K, true});
      expect_same_bits(dx_wide, spread(added, s.T, s.K, dxs, 3.0f),
                       name_of(context, s) + ", accumulated");
    });
  }
}

TEST(LinearTest, WeightGradientContinuesItsChain) {
  for (const Shape& s : kShapes) {
    const Floats x = random_floats(s.T * s.K, -1, 1, 10), dy = random_floats(s.T * s.N, -1, 1, 11),
                 before = random_floats(s.N * s.K, -1, 1, 12);
    const PanelLayout layout = weight(s.N, s.K);
    const Floats expected = bwd_weight_in_order(s, x, dy, before);
    const double td = static_cast<double>(s.T);
    expect_close(bwd_weight_in_order(s, x, dy, Floats(before.size())),
                 linear_bwd_weight_ref(s.T, s.N, s.K, to_double(x), to_double(dy)),
                 td * td * 0x1p-24, 0, name_of("chain", s));
    const int64_t xs = s.K + 300, dys = s.N + 1;  // rows of x far apart are copied first
    const Floats x_wide = spread(x, s.T, s.K, xs, 1e30f),
                 dy_wide = spread(dy, s.T, s.N, dys, 1e30f);
    for_each_context([&](const ExecContext& ctx, const std::string& context) {
      Floats dw = pack(before, layout);
      linear_bwd_weight(ctx, {x.data(), s.K, dy.data(), s.N, dw.data(), s.T, s.N, s.K});
      // Equal panels: the padding is still zero.
      expect_same_bits(dw, pack(expected, layout), name_of(context, s));
      // Two micro-batches, strided.
      Floats cut = pack(before, layout);
      const int64_t first = s.T / 3;
      linear_bwd_weight(ctx, {x_wide.data(), xs, dy_wide.data(), dys, cut.data(), first, s.N, s.K});
      linear_bwd_weight(ctx, {x_wide.data() + first * xs, xs, dy_wide.data() + first * dys, dys,
                              cut.data(), s.T - first, s.N, s.K});
      expect_same_bits(cut, dw, name_of(context, s) + ", two micro-batches");
    });
  }
}

TEST(LinearTest, PaddingStaysZeroWhereInputsAreNotFinite) {
  const int64_t T = 3, N = 5, K = 4;
  const float inf = std::numeric_limits<float>::infinity();
  const Floats x(at(T * K), inf), dy(at(T * N), 1.0f);
  const PanelLayout layout = weight(N, K);
  for_each_context([&](const ExecContext& ctx, const std::string& context) {
    Floats dw(at(layout.size()));
    linear_bwd_weight(ctx, {x.data(), K, dy.data(), N, dw.data(), T, N, K});
    expect_same_bits(dw, pack(Floats(at(N * K), inf), layout), context);
  });
}

TEST(LinearTest, RowsDoNotDependOnTheirNeighbours) {
  const Shape s{50, 130, 96};
  const Floats x = random_floats(s.T * s.K, -1, 1, 13), w = random_floats(s.N * s.K, -1, 1, 14);
  const Floats panels = pack(w, weight(s.N, s.K));
  for_each_context([&](const ExecContext& ctx, const std::string& context) {
    Floats all(at(s.T * s.N));
    linear_fwd(ctx, {x.data(), s.K, panels.data(), all.data(), s.N, s.T, s.N, s.K, 2});
    for (const int64_t rows : {1, 2, 3, 4, 5, 17}) {
      Floats cut(all.size());
      for (int64_t t = 0; t < s.T; t += rows) {
        const int64_t n = std::min(rows, s.T - t);
        linear_fwd(ctx, {x.data() + t * s.K, s.K, panels.data(), cut.data() + t * s.N, s.N, n, s.N,
                         s.K, 2});
      }
      expect_same_bits(cut, all, context + ", rows " + std::to_string(rows));
    }
  });
}

TEST(LinearTest, GroupsAreTheirOwnProducts) {
  const int64_t N = 72, K = 48;
  const std::vector<int64_t> begin = {0, 0, 1, 8, 8, 120, 122};
  const int64_t groups = static_cast<int64_t>(begin.size()) - 1, R = begin.back();
  const Floats x = random_floats(R * K, -1, 1, 15), dy = random_floats(R * N, -1, 1, 16),
               dx_before = random_floats(R * K, -1, 1, 17);
  const PanelLayout layout = weight(N, K);
  std::vector<Floats> w, dw_before;
  std::vector<const float*> w_panels;
  for (int64_t g = 0; g < groups; ++g) {
    w.push_back(pack(random_floats(N * K, -1, 1, static_cast<uint32_t>(20 + g)), layout));
    dw_before.push_back(pack(random_floats(N * K, -1, 1, static_cast<uint32_t>(40 + g)), layout));
  }
  for (const Floats& m : w) w_panels.push_back(m.data());
  const GroupedLinear problem{groups, begin.data(), N, K, begin.back()};
  for_each_context([&](const ExecContext& ctx, const std::string& context) {
    Floats y(at(R * N)), dx(at(R * K), 9.0f), dx_added = dx_before;
    std::vector<Floats> dw = dw_before;
    std::vector<float*> dw_panels;
    for (Floats& m : dw) dw_panels.push_back(m.data());
    dw_panels[2] = nullptr;
    grouped_linear_fwd(ctx, problem, x.data(), w_panels.data(), y.data(), 4);
    grouped_linear_bwd_input(ctx, problem, dy.data(), w_panels.data(), dx.data(), false);
    grouped_linear_bwd_input(ctx, problem, dy.data(), w_panels.data(), dx_added.data(), true);
    grouped_linear_bwd_weight(ctx, problem, x.data(), dy.data(), dw_panels.data());

    Floats y1(y.size()), dx1(dx.size()), dx1_added = dx_before;
    std::vector<Floats> dw1 = dw_before;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t r = begin[at(g)], T = begin[at(g + 1)] - r;
      linear_fwd(ctx, {x.data() + r * K, K, w_panels[at(g)], y1.data() + r * N, N, T, N, K, 4});
      linear_bwd_input(ctx,
                       {dy.data() + r * N, N, w_panels[at(g)], dx1.data() + r * K, K, T, N, K});
      linear_bwd_input(
          ctx, {dy.data() + r * N, N, w_panels[at(g)], dx1_added.data() + r * K, K, T, N, K, true});
      if (g == 2) continue;
      linear_bwd_weight(ctx,
                        {x.data() + r * K, K, dy.data() + r * N, N, dw1[at(g)].data(), T, N, K});
    }
    expect_same_bits(y, y1, context + " y");
    expect_same_bits(dx, dx1, context + " dx");
    expect_same_bits(dx_added, dx1_added, context + " dx added");
    for (int64_t g = 0; g < groups; ++g) {
      expect_same_bits(dw[at(g)], dw1[at(g)], context + " dw of group " + std::to_string(g));
    }
  });
}

TEST(LinearTest, WrongSizesAreRefused) {
  const Floats x(64), w(64 * 16);
  Floats y(64);
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    EXPECT_THROW(linear_fwd(ctx, {x.data(), 8, w.data(), y.data(), 16, 1, 16, 8, 3}),
                 InternalError);
    EXPECT_THROW(linear_fwd(ctx, {x.data(), 7, w.data(), y.data(), 16, 1, 16, 8}), InternalError);
    EXPECT_THROW(linear_fwd(ctx, {x.data(), 8, w.data(), y.data(), 15, 1, 16, 8}), InternalError);
    EXPECT_THROW(linear_fwd(ctx, {x.data(), 8, w.data(), y.data(), 16, 1, 0, 8}), InternalError);
    EXPECT_THROW(linear_bwd_input(ctx, {x.data(), 15, w.data(), y.data(), 8, 1, 16, 8}),
                 InternalError);
    EXPECT_THROW(linear_bwd_weight(ctx, {x.data(), 7, y.data(), 16, y.data(), 1, 16, 8}),
                 InternalError);
  });
}

}  // namespace
}  // namespace fathom
