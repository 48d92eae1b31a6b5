#include "fathom/kernels/rope/rope.h"

#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/rope/rope_ref.h"

namespace fathom {
namespace {

constexpr double kEps = 0x1p-24;
constexpr RopeScaling kYarnScaling{
    .factor = 16, .beta_fast = 32, .beta_slow = 1, .original_max_position_embeddings = 65536};

// The published frequencies of the model family: base 10000, and base 160000 with YaRN.
const std::vector<float> kPlain = {
    1.000000000e+00f, 7.498942018e-01f, 5.623413324e-01f, 4.216965139e-01f, 3.162277639e-01f,
    2.371373773e-01f, 1.778279394e-01f, 1.333521456e-01f, 1.000000015e-01f, 7.498942316e-02f,
    5.623413250e-02f, 4.216964915e-02f, 3.162277490e-02f, 2.371373773e-02f, 1.778279431e-02f,
    1.333521400e-02f, 9.999999776e-03f, 7.498942316e-03f, 5.623413250e-03f, 4.216964822e-03f,
    3.162277630e-03f, 2.371373819e-03f, 1.778279431e-03f, 1.333521446e-03f, 1.000000047e-03f,
    7.498941850e-04f, 5.623413017e-04f, 4.216965172e-04f, 3.162277571e-04f, 2.371373703e-04f,
    1.778279402e-04f, 1.333521504e-04f};
const std::vector<float> kYarn = {
    1.000000000e+00f, 6.876560450e-01f, 4.728707969e-01f, 3.251724541e-01f, 2.236067951e-01f,
    1.537645608e-01f, 1.057371274e-01f, 7.271077484e-02f, 5.000000075e-02f, 3.438280150e-02f,
    2.364354022e-02f, 1.625862345e-02f, 1.118034031e-02f, 7.688228041e-03f, 5.286856089e-03f,
    3.635538509e-03f, 2.265624935e-03f, 1.396801323e-03f, 8.496897062e-04f, 5.080819828e-04f,
    2.969777852e-04f, 1.681799913e-04f, 9.086784121e-05f, 4.544423064e-05f, 1.953124956e-05f,
    5.372312899e-06f, 3.694303132e-06f, 2.540409923e-06f, 1.746928092e-06f, 1.201285613e-06f,
    8.260713003e-07f, 5.680528830e-07f};

TEST(RopeFrequenciesTest, MatchThePublishedTables) {
  expect_same_bits(rope_frequencies(64, 10000, {}), kPlain, "no YaRN");
  expect_same_bits(rope_frequencies(64, 160000, kYarnScaling), kYarn, "YaRN");
}

TEST(RopeFrequenciesTest, EqualRampEndsAndBadArguments) {
  // Both ends of the ramp at channel 0: every other frequency is divided by the factor.
  const RopeScaling short_context{
      .factor = 4, .beta_fast = 1, .beta_slow = 1, .original_max_position_embeddings = 6};
  const auto plain = rope_frequencies(8, 10000, {}), f = rope_frequencies(8, 10000, short_context);
  EXPECT_EQ(f[0], 1.0f);
  for (size_t i = 1; i < 4; ++i) EXPECT_FLOAT_EQ(f[i], plain[i] / 4);

  EXPECT_THROW(rope_frequencies(7, 10000, {}), UserError);
  EXPECT_THROW(rope_frequencies(0, 10000, {}), UserError);
  EXPECT_THROW(rope_frequencies(8, 1, {}), UserError);
  EXPECT_THROW(rope_frequencies(8, 10000, {.factor = 16}), UserError);
  EXPECT_THROW(rope_frequencies(8, 10000, {.factor = 0, .original_max_position_embeddings = 5}),
               UserError);
}

TEST(RopeTableTest, MatchesFp64SineAndCosineWithSameBitsEverywhere) {
  std::vector<int64_t> positions = {0, 1, 2, 127, 128, 65535, 999999, 1048575};
  for (int64_t p = 0; p < 500; ++p) positions.push_back(p * 2099);
  const int64_t n = static_cast<int64_t>(positions.size());
  for (const auto& frequencies : {kPlain, kYarn, std::vector<float>{1.0f, 0.3f, 0.01f}}) {
    const int64_t F = static_cast<int64_t>(frequencies.size());
    std::vector<double> cos_ref, sin_ref;
    for (const int64_t p : positions) {
      for (const float f : frequencies) {
        const float angle = static_cast<float>(p) * f;
        cos_ref.push_back(std::cos(static_cast<double>(angle)));
        sin_ref.push_back(std::sin(static_cast<double>(angle)));
      }
    }
    std::vector<float> cos1, sin1;
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> cos(cos_ref.size()), sin(cos_ref.size());
      rope_table(ctx, positions.data(), n, frequencies.data(), F, cos.data(), sin.data());
      // One rounding to fp32 of a value that is off by at most 1e-15.
      expect_close(cos, cos_ref, 2e-15, kEps, name + " cos");
      expect_close(sin, sin_ref, 2e-15, kEps, name + " sin");
      if (cos1.empty()) cos1 = cos, sin1 = sin;
      expect_same_bits(cos, cos1, name + " cos");
      expect_same_bits(sin, sin1, name + " sin");
      rope_table(ctx, nullptr, 0, frequencies.data(), F, nullptr, nullptr);
    });
  }
}

struct Shape {
  int64_t rows, heads, head_dim, rope_dim;
};

TEST(RopeApplyTest, MatchesFp64AndGoesBackWithSameBitsEverywhere) {
  for (const Shape s : {Shape{300, 8, 64, 16}, Shape{5, 2, 24, 24}, Shape{3, 1, 512, 64},
                        Shape{9, 3, 7, 2}, Shape{4, 2, 20, 14}}) {
    const int64_t head_stride = s.head_dim + 2, row_stride = s.heads * head_stride + 5;
    const int64_t pairs = s.rope_dim / 2;
    const auto frequencies = rope_frequencies(s.rope_dim, 10000, {});
    std::vector<int64_t> positions;
    for (int64_t r = 0; r < s.rows; ++r) positions.push_back(r * 37 % 1000);
    const auto x = random_floats(s.rows * row_stride, -2, 2, 1);

    std::vector<float> turned1, back1;
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> cos(static_cast<size_t>(s.rows * pairs)), sin(cos.size());
      rope_table(ctx, positions.data(), s.rows, frequencies.data(), pairs, cos.data(), sin.data());
      std::vector<float> y = x;
      RopeApply p{.x = y.data(),
                  .row_stride = row_stride,
                  .head_stride = head_stride,
                  .num_rows = s.rows,
                  .num_heads = s.heads,
                  .head_dim = s.head_dim,
                  .rope_dim = s.rope_dim,
                  .cos = cos.data(),
                  .sin = sin.data()};
      rope_apply(ctx, p);
      std::vector<double> expected = to_double(x);  // what lies between the heads stays as it is
      for (int64_t r = 0; r < s.rows; ++r) {
        std::vector<double> angles;
        for (const float f : frequencies) {
          angles.push_back(static_cast<float>(positions[static_cast<size_t>(r)]) * f);
        }
        for (int64_t h = 0; h < s.heads; ++h) {
          const auto head = expected.begin() + r * row_stride + h * head_stride;
          const auto turned = rope_ref({head, head + s.head_dim}, angles);
          std::copy(turned.begin(), turned.end(), head);
          for (int64_t i = 0; i < s.head_dim - s.rope_dim; ++i) {
            const size_t at = static_cast<size_t>(r * row_stride + h * head_stride + i);
            ASSERT_EQ(y[at], x[at]) << name << ": a channel without rotation changed";
          }
        }
      }
      // Two products of values up to 2, each with a rounded table entry, and two roundings.
      expect_close(y, expected, 2 * 6 * kEps, 0, name);
      std::vector<float> back = y;
      p.x = back.data(), p.inverse = true;
      rope_apply(ctx, p);
      expect_close(back, to_double(x), 2 * 16 * kEps, 0, name + " there and back");
      if (turned1.empty()) turned1 = y, back1 = back;
      expect_same_bits(y, turned1, name);
      expect_same_bits(back, back1, name + " back");

      // The inverse is the forward with the sine's sign turned; rows alone give the same bits.
      std::vector<float> negated = sin, single = y;
      for (float& v : negated) v = -v;
      for (int64_t r = 0; r < s.rows; ++r) {
        RopeApply row = p;
        row.x = single.data() + r * row_stride, row.num_rows = 1, row.inverse = false;
        row.cos += r * pairs, row.sin = negated.data() + r * pairs;
        rope_apply(ctx, row);
      }
      expect_same_bits(single, back, name + " rows alone");
      p.num_rows = 0, p.x = nullptr;
      rope_apply(ctx, p);
    });
  }
}

TEST(RopeApplyTest, DotProductsDependOnRelativePositionOnly) {
  ThreadPool pool(1);
  const ExecContext ctx{&pool, CpuIsa::kAvx2};
  const auto frequencies = rope_frequencies(16, 10000, {});
  const auto q = random_floats(16, -1, 1, 1), k = random_floats(16, -1, 1, 2);
  const auto turned_dot = [&](int64_t q_position, int64_t k_position) {
    const int64_t positions[] = {q_position, k_position};
    std::vector<float> cos(16), sin(16), rows = q;
    rows.insert(rows.end(), k.begin(), k.end());
    rope_table(ctx, positions, 2, frequencies.data(), 8, cos.data(), sin.data());
    rope_apply(ctx, {.x = rows.data(),
                     .row_stride = 16,
                     .head_stride = 16,
                     .num_rows = 2,
                     .num_heads = 1,
                     .head_dim = 16,
                     .rope_dim = 16,
                     .cos = cos.data(),
                     .sin = sin.data()});
    double sum = 0;
    for (size_t i = 0; i < 16; ++i) sum += static_cast<double>(rows[i]) * rows[16 + i];
    return sum;
  };
  // Angles up to 400 rounded to fp32 are off by up to 400 * 2^-24 each.
  EXPECT_NEAR(turned_dot(17, 5), turned_dot(400, 388), 16 * 2 * 400 * kEps);
  EXPECT_GT(std::abs(turned_dot(17, 5) - turned_dot(17, 6)), 1e-3);
}

}  // namespace
}  // namespace fathom
