#include "fathom/kernels/compressor/compressor.h"

#include "fathom/kernels/compressor/compressor_ref.h"
#include "fathom/kernels/kernel_test.h"

namespace fathom {
namespace {

constexpr double kEps = 0x1p-24;

struct Shape {
  int64_t ratio, coff, c, T;
};

struct Problem {
  Shape s;
  std::vector<float> v, g, ape, dentries;

  explicit Problem(const Shape& shape, float gate_spread = 6) : s(shape) {
    const int64_t row = s.coff * s.c;
    v = random_floats(s.T * row, -2, 2, 1);
    g = random_floats(s.T * row, -gate_spread, gate_spread, 2);
    ape = random_floats(s.ratio * row, -1, 1, 3);
    dentries = random_floats(s.T / s.ratio * s.c, -1, 1, 4);
  }
  CompressorRef reference() const {
    // The kernel's gate is the fp32 sum of g and ape; the reference takes that sum as given, so
    // that what is compared is the pooling.
    const int64_t row = s.coff * s.c;
    std::vector<double> sum;
    for (size_t i = 0; i < g.size(); ++i) {
      const size_t slot = i / static_cast<size_t>(row) % static_cast<size_t>(s.ratio);
      sum.push_back(g[i] + ape[slot * static_cast<size_t>(row) + i % static_cast<size_t>(row)]);
    }
    return {s.ratio, s.coff, s.c, to_double(v), sum, std::vector<double>(ape.size())};
  }
};

struct Streamed {
  std::vector<float> entries, state;
};

/// Feeds the tokens in chunks of the given lengths.
Streamed stream(const ExecContext& ctx, const Problem& p, const std::vector<int64_t>& chunks) {
  const Shape& s = p.s;
  const int64_t row = s.coff * s.c;
  Streamed out{std::vector<float>(p.dentries.size()),
               std::vector<float>(static_cast<size_t>(compressor_state_size(s.coff, s.c)))};
  compressor_state_clear(out.state.data(), s.coff, s.c);
  int64_t at = 0;
  for (const int64_t n : chunks) {
    compressor_fwd(ctx, {.v = p.v.data() + at * row,
                         .g = p.g.data() + at * row,
                         .ape = p.ape.data(),
                         .start_pos = at,
                         .num_tokens = n,
                         .ratio = s.ratio,
                         .coff = s.coff,
                         .c = s.c,
                         .state = out.state.data(),
                         .entries = out.entries.data() + at / s.ratio * s.c});
    at += n;
  }
  EXPECT_EQ(at, s.T);
  return out;
}

struct Grads {
  std::vector<float> dv, dg, dape;
};

Grads backward(const ExecContext& ctx, const Problem& p, float dape_before = 0) {
  Grads grads{std::vector<float>(p.v.size(), 9.0f), std::vector<float>(p.v.size(), 9.0f),
              std::vector<float>(p.ape.size(), dape_before)};
  compressor_bwd(ctx, {.v = p.v.data(),
                       .g = p.g.data(),
                       .ape = p.ape.data(),
                       .dentries = p.dentries.data(),
                       .num_tokens = p.s.T,
                       .ratio = p.s.ratio,
                       .coff = p.s.coff,
                       .c = p.s.c,
                       .dv = grads.dv.data(),
                       .dg = grads.dg.data(),
                       .dape = grads.dape.data()});
  return grads;
}

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = {{4, 2, 64, 203}, {4, 2, 20, 8},     {4, 2, 7, 3},
                                          {4, 2, 16, 5},   {128, 1, 64, 300}, {128, 1, 9, 128},
                                          {16, 1, 33, 70}, {4, 2, 16, 0},     {128, 1, 16, 127}};
  return list;
}

TEST(CompressorTest, ReferenceGradientMatchesCentralDifferences) {
  for (const Shape s : {Shape{4, 2, 2, 10}, Shape{3, 1, 2, 7}}) {
    const Problem p(s, 2);
    CompressorRef ref{s.ratio, s.coff, s.c, to_double(p.v), to_double(p.g), to_double(p.ape)};
    const auto de = to_double(p.dentries);
    const auto loss = [&] {
      const auto e = compressor_ref(ref);
      double sum = 0;
      for (size_t i = 0; i < e.size(); ++i) sum += e[i] * de[i];
      return sum;
    };
    const CompressorGradsRef grads = compressor_bwd_ref(ref, de);
    expect_close(grads.dv, central_differences(ref.v, 1e-5, loss), 1e-8, 1e-8, "dv");
    expect_close(grads.dg, central_differences(ref.g, 1e-5, loss), 1e-8, 1e-8, "dg");
    expect_close(grads.dape, central_differences(ref.ape, 1e-5, loss), 1e-8, 1e-8, "dape");
  }
}

TEST(CompressorTest, ForwardAndBackwardMatchFp64WithSameBitsEverywhere) {
  for (const Shape& s : shapes()) {
    const Problem p(s);
    const CompressorRef ref = p.reference();
    const auto entries_ref = compressor_ref(ref);
    const CompressorGradsRef grads_ref = compressor_bwd_ref(ref, to_double(p.dentries));
    Streamed first;
    Grads first_grads;
    for_each_context([&](const ExecContext& ctx, const std::string& context) {
      const std::string name =
          context + ", ratio " + std::to_string(s.ratio) + ", T " + std::to_string(s.T);
      const Streamed whole = stream(ctx, p, {s.T});
      // A slot's weight is a product of up to `slots` factors exp(m - m'), exact 1 unless the max
      // moved: each step costs 3 ulp of exp and two roundings. Weights sum to 1, |v| <= 2.
      const double slots = static_cast<double>(s.ratio * s.coff);
      const double weight_error = (5 * slots + 4) * kEps;
      expect_close(whole.entries, entries_ref, 2 * 2 * weight_error, 0, name);
      const Grads grads = backward(ctx, p);
      // Gradients are below 1 and 4 times a weight.
      expect_close(grads.dv, grads_ref.dv, 1e-30, 2 * weight_error, name + " dv");
      expect_close(grads.dg, grads_ref.dg, 3 * 4 * weight_error, 0, name + " dg");
      const double windows = static_cast<double>(s.T / s.ratio + 1);
      expect_close(grads.dape, grads_ref.dape, 3 * 4 * windows * (weight_error + windows * kEps), 0,
                   name + " dape");
      if (first.state.empty()) first = whole, first_grads = grads;
      expect_same_bits(whole.entries, first.entries, name);
      expect_same_bits(whole.state, first.state, name + " state");
      expect_same_bits(grads.dv, first_grads.dv, name + " dv");
      expect_same_bits(grads.dg, first_grads.dg, name + " dg");
      expect_same_bits(grads.dape, first_grads.dape, name + " dape");
    });
  }
}

TEST(CompressorTest, AnyChunkingGivesTheBitsOfTheWhole) {
  for (const Shape& s : shapes()) {
    const Problem p(s);
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      const Streamed whole = stream(ctx, p, {s.T});
      std::vector<std::vector<int64_t>> splits = {std::vector<int64_t>(static_cast<size_t>(s.T), 1),
                                                  {s.T / 2, 0, s.T - s.T / 2}};
      for (const int64_t n : {3, 5, 127, 129}) {
        std::vector<int64_t> split;
        for (int64_t t = 0; t < s.T; t += n) split.push_back(std::min(n, s.T - t));
        splits.push_back(split);
      }
      std::mt19937 generator(7);
      std::vector<int64_t> ragged;
      for (int64_t left = s.T; left > 0; left -= ragged.back()) {
        ragged.push_back(std::min<int64_t>(left, generator() % 11));
      }
      splits.push_back(ragged);
      for (const auto& split : splits) {
        const Streamed chunked = stream(ctx, p, split);
        expect_same_bits(chunked.entries, whole.entries, name);
        expect_same_bits(chunked.state, whole.state, name + " state");
      }
    });
  }
}

TEST(CompressorTest, RowsThatReachNoEntryGetZeroAndApeContinues) {
  const Problem p({4, 2, 20, 11});
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const Grads grads = backward(ctx, p);
    for (size_t t = 0; t < 11; ++t) {
      for (size_t column = 0; column < 40; ++column) {
        // A of tokens 4..7 would open entry 2, which is not complete; tokens 8..10 are in it.
        const bool reaches = t < 4 || (t < 8 && column >= 20);
        EXPECT_EQ(grads.dv[t * 40 + column] != 0, reaches) << name << " " << t << " " << column;
        EXPECT_EQ(grads.dg[t * 40 + column] != 0, reaches) << name << " " << t << " " << column;
      }
    }
    // dape is a chain that continues: ape row j, columns B: tokens j, then 4 + j.
    const Grads more = backward(ctx, p, 0.5f);
    for (size_t j = 0; j < 4; ++j) {
      const size_t at = j * 40 + 25;
      EXPECT_EQ(more.dape[at], (0.5f + grads.dg[at]) + grads.dg[(j + 4) * 40 + 25]) << name;
    }
  });
}

TEST(CompressorTest, GoldenRatioFourOneChannel) {
  Problem p({4, 2, 1, 9});
  p.v.clear(), p.g.clear();
  for (int t = 0; t < 9; ++t) {
    const float step = static_cast<float>(t);
    p.v.insert(p.v.end(), {0.1f * step, 1 + 0.1f * step});
    p.g.insert(p.g.end(), {0.2f * static_cast<float>(t % 3), -0.1f * static_cast<float>(t % 4)});
  }
  p.ape = {0, .3f, .1f, .2f, .2f, .1f, .3f, 0};  // rows (A, B)
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const Streamed out = stream(ctx, p, {9});
    // Published to seven decimals, from inputs that fp32 rounds.
    EXPECT_NEAR(out.entries[0], 1.1252791, 5e-8 + 16 * kEps) << name;
    EXPECT_NEAR(out.entries[1], 0.7439897, 5e-8 + 16 * kEps) << name;
    // Token 8 stays in the state: it alone is in `next`, with its A channels.
    EXPECT_EQ(out.state[3], p.g[16] + p.ape[0]) << name;
    EXPECT_EQ(out.state[4], 1.0f) << name;
    EXPECT_EQ(out.state[5], p.v[16]) << name;
  });
}

TEST(CompressorTest, GoldenVisibilityOfTenTokens) {
  // After token t, floor((t + 1) / 4) entries exist; entry 1 pools A of tokens 0-3, B of tokens
  // 4-7.
  Problem p({4, 2, 3, 10});
  const int64_t expected[] = {0, 0, 0, 1, 1, 1, 1, 2, 2, 2};
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> state(static_cast<size_t>(compressor_state_size(2, 3)));
    compressor_state_clear(state.data(), 2, 3);
    int64_t num_entries = 0;
    for (int64_t t = 0; t < 10; ++t) {
      std::vector<float> entry(3, 77.0f);  // what the call leaves alone stays 77
      compressor_fwd(ctx, {.v = p.v.data() + t * 6,
                           .g = p.g.data() + t * 6,
                           .ape = p.ape.data(),
                           .start_pos = t,
                           .num_tokens = 1,
                           .ratio = 4,
                           .coff = 2,
                           .c = 3,
                           .state = state.data(),
                           .entries = entry.data()});
      num_entries += entry[0] != 77.0f;
      EXPECT_EQ(num_entries, expected[t]) << name << ", token " << t;
    }
    Problem only_second = p;
    std::fill_n(only_second.dentries.begin(), 3, 0.0f);
    const Grads grads = backward(ctx, only_second);
    for (size_t t = 0; t < 10; ++t) {
      for (size_t column = 0; column < 6; ++column) {
        const bool pooled = column < 3 ? t < 4 : t >= 4 && t < 8;
        EXPECT_EQ(grads.dv[t * 6 + column] != 0, pooled) << name << " " << t << " " << column;
      }
    }
  });
}

TEST(CompressorTest, LargeGatesAndNaN) {
  // Gates far apart neither overflow nor lose the winner.
  Problem p({4, 2, 16, 8});
  for (size_t i = 0; i < p.g.size(); ++i) p.g[i] = i % 3 == 0 ? 3e4f : -3e4f;
  const auto expected = compressor_ref(p.reference());
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    expect_close(stream(ctx, p, {8}).entries, expected, 2 * 44 * kEps, 0, name);
    Problem bad = p;
    bad.g[16 + 5] = std::nanf("");  // token 0, channel B 5
    const Streamed seen = stream(ctx, bad, {8});
    EXPECT_TRUE(std::isnan(seen.entries[5])) << name;
    EXPECT_FALSE(std::isnan(seen.entries[6])) << name;
    EXPECT_FALSE(std::isnan(seen.entries[16 + 5])) << name << ": the next entry";
  });
}

}  // namespace
}  // namespace fathom
