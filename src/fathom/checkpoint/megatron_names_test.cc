#include "fathom/checkpoint/megatron_names.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "fathom/base/error.h"
#include "fathom/checkpoint/dcp_test_model.h"

namespace fathom {
namespace {

TEST(MegatronNamesTest, EveryTensorOfAModelHasAPlaceOfItsOwnAndAWayBack) {
  const Weights weights = make_weights(small_config());
  std::map<std::string, int64_t> covered;
  std::map<std::string, std::vector<int64_t>> shapes;
  std::set<std::pair<std::string, std::vector<int64_t>>> places;
  int64_t count = 0;
  for_each_parameter(weights, [&](const Parameter& p) {
    ++count;
    const MegatronSlice s = megatron_slice(p.name, p.shape, 4);
    int64_t elements = 1;
    for (int64_t d : s.sizes) elements *= d;
    EXPECT_EQ(elements, p.numel()) << p.name;
    EXPECT_TRUE(places.emplace(s.key, s.offsets).second) << p.name;
    if (!shapes.contains(s.key)) shapes[s.key] = s.shape;
    EXPECT_EQ(shapes[s.key], s.shape) << p.name;
    covered[s.key] += elements;
    const bool experts = s.shape.size() == 3;
    const bool up = s.offsets.size() >= 2 && s.offsets[experts ? 1 : 0] > 0;
    EXPECT_EQ(official_name(s.key, experts ? s.offsets[0] : 0, up), p.name) << s.key;
    if (p.kind == ParameterKind::kTable) {
      EXPECT_EQ(s.dtype, DType::kI32);
    } else {
      EXPECT_EQ(s.dtype, p.export_dtype) << p.name;
    }
  });
  EXPECT_EQ(count, 193);
  for (const auto& [key, elements] : covered) {
    int64_t total = 1;
    for (int64_t d : shapes[key]) total *= d;
    EXPECT_EQ(elements, total) << key;
  }
}

TEST(MegatronNamesTest, ExpertsAreBoxesOfOneTensorPerLayer) {
  const MegatronSlice up = megatron_slice("layers.3.ffn.experts.17.w3.weight", {2048, 4096}, 256);
  EXPECT_EQ(up.key, "decoder.layers.3.mlp.experts.experts.linear_fc1.weight");
  EXPECT_EQ(up.shape, (std::vector<int64_t>{256, 4096, 4096}));
  EXPECT_EQ(up.offsets, (std::vector<int64_t>{17, 2048, 0}));
  EXPECT_EQ(up.sizes, (std::vector<int64_t>{1, 2048, 4096}));
  EXPECT_EQ(up.dtype, DType::kBF16);
  const MegatronSlice down = megatron_slice("layers.3.ffn.experts.17.w2.weight", {4096, 2048}, 256);
  EXPECT_EQ(down.key, "decoder.layers.3.mlp.experts.experts.linear_fc2.weight");
  EXPECT_EQ(down.shape, (std::vector<int64_t>{256, 4096, 2048}));
  const MegatronSlice gate = megatron_slice("mtp.0.ffn.shared_experts.w1.weight", {8, 4}, 256);
  EXPECT_EQ(gate.key, "mtp.layers.0.transformer_layer.mlp.shared_experts.linear_fc1.weight");
  EXPECT_EQ(gate.shape, (std::vector<int64_t>{16, 4}));
  EXPECT_EQ(gate.offsets, (std::vector<int64_t>{0, 0}));
}

TEST(MegatronNamesTest, ForeignNamesAreErrors) {
  for (const char* name : {"", "layers.0", "layers.x.attn.wq_a.weight", "layers.0.attn.q.weight",
                           "layers.0.ffn.experts.4.w1.weight", "layers.0.ffn.experts.0.w4.weight",
                           "mtp.0.embed.weight", "model.norm.weight"}) {
    EXPECT_THROW(megatron_slice(name, {8, 4}, 4), UserError) << name;
  }
  for (const char* key : {"", "decoder.layers.0.mlp", "decoder.layers.0.mlp.experts.linear_fc1",
                          "mtp.layers.0.input_layernorm.weight"}) {
    EXPECT_THROW(official_name(key, 0, false), UserError) << key;
  }
}

}  // namespace
}  // namespace fathom
