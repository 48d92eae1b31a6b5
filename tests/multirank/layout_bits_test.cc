// One model over several ranks: forward bits of one rank in every mode, MTP included, gradients
// within the bound of docs/numerics.md.
#include <gtest/gtest.h>

#include "fathom/train/score.h"
#include "tests/multirank/layout_cases.h"

namespace fathom {
namespace {

constexpr double kGradientBound = 1e-5;  // L2 of the difference, relative to the tensor

using Tensors = std::map<std::string, Tensor>;

Tensors score_on(const Case& c, Precision precision) {
  Tensors result;
  run_ranks(c, [&](const ExecContext& ctx, dist::World& world) {
    RankModel rank = make_rank_model(ctx, world, c, precision);
    const NamedTensors tensors = score(ctx, rank.weights, some_sequences(c.model),
                                       {.with_logits = true,
                                        .with_gradients = true,
                                        .with_mtp = !rank.weights.mtp.empty(),
                                        .chunk_tokens = 24},
                                       rank.groups);
    if (world.rank() == 0) result = {tensors.begin(), tensors.end()};
  });
  return result;
}

const Tensors& score_of_one(Model model, Precision precision) {
  static std::map<std::pair<Model, Precision>, Tensors> results;
  Tensors& result = results[{model, precision}];
  if (result.empty()) result = score_on({"One", {}, false, model}, precision);
  return result;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return std::memcmp(a.bytes(), b.bytes(), static_cast<size_t>(a.num_bytes())) == 0;
}

class Layouts : public ::testing::TestWithParam<std::tuple<Case, Precision>> {};

std::string name_in_mode(const ::testing::TestParamInfo<Layouts::ParamType>& info) {
  std::string mode = precision_name(std::get<1>(info.param));
  std::erase(mode, '-');
  return std::get<0>(info.param).name + ("_" + mode);
}

INSTANTIATE_TEST_SUITE_P(All, Layouts,
                         ::testing::Combine(::testing::ValuesIn(kLayouts),
                                            ::testing::ValuesIn(kAllPrecisions)),
                         name_in_mode);

TEST_P(Layouts, ForwardHasTheBitsOfOneRankAndGradientsItsValues) {
  const auto& [layout, precision] = GetParam();
  const Tensors& one = score_of_one(layout.model, precision);
  const Tensors many = score_on(layout, precision);
  ASSERT_EQ(many.size(), one.size());
  double worst = 0.0;
  int num_equal = 0, num_gradients = 0;
  for (const auto& [name, tensor] : one) {
    ASSERT_TRUE(many.contains(name)) << name;
    const Tensor& other = many.at(name);
    ASSERT_EQ(other.shape(), tensor.shape()) << name;
    if (name.starts_with("grad.")) {
      const double difference = relative_difference(tensor.f32(), other.f32(), tensor.numel());
      worst = std::max(worst, difference);
      EXPECT_LE(difference, kGradientBound) << name;
      ++num_gradients;
      num_equal += same_bits(tensor, other);
    } else {
      EXPECT_TRUE(same_bits(tensor, other)) << name;
    }
  }
  RecordProperty("worst_gradient_difference", str_cat(worst));
  RecordProperty("gradients_with_equal_bits", str_cat(num_equal, " of ", num_gradients));
}

}  // namespace
}  // namespace fathom
