// The model against what transformers' DeepseekV4ForCausalLM computes (tests/golden/README.md): logits and
// log-probs within 1e-4, gradients within 1e-3 (L2, per tensor), greedy tokens exactly, with and without a
// cached state. fp32 and fp64 runs of the oracle differ by less than 2e-5.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/safetensors.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/model/forward.h"
#include "fathom/model/sequence_state.h"
#include "fathom/train/score.h"

namespace fathom {
namespace {

Weights load(const std::string& directory) {
  ThreadPool pool(1);
  Weights weights = load_weights({&pool, detect_cpu_isa()}, directory);
  move_weights(base_context(&pool), &weights);
  return weights;
}

struct GoldenCase {
  explicit GoldenCase(const std::string& name)
      : directory(std::string(FATHOM_SOURCE_DIR) + "/tests/golden/" + name),
        file(directory + "/case.safetensors"),
        weights(load(directory + "/model")) {
    for (int i = 0; file.find("ids." + std::to_string(i)) != nullptr; ++i) {
      const Tensor ids = file.read("ids." + std::to_string(i));
      sequences.emplace_back(ids.i32(), ids.i32() + ids.numel());
    }
  }
  std::string directory;
  SafetensorsFile file;
  Weights weights;
  std::vector<std::vector<int32_t>> sequences;
};

class GoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, detect_cpu_isa(), test_device()};
};

void expect_near(const Tensor& got, const Tensor& want, double tolerance, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  double worst = 0.0;
  int64_t at = 0;
  for (int64_t i = 0; i < got.numel(); ++i) {
    const double d = std::fabs(static_cast<double>(got.f32()[i]) - want.f32()[i]);
    if (!(d <= worst)) {
      worst = d;
      at = i;
    }
  }
  EXPECT_LE(worst, tolerance) << what << " at " << at << ": got " << got.f32()[at] << ", want "
                              << want.f32()[at];
}

double l2(const Tensor& t) {
  double sum = 0.0;
  for (int64_t i = 0; i < t.numel(); ++i) sum += static_cast<double>(t.f32()[i]) * t.f32()[i];
  return std::sqrt(sum);
}

TEST_P(GoldenTest, LogitsAndLogProbsOfEveryChunking) {
  GoldenCase golden(GetParam());
  ASSERT_FALSE(golden.sequences.empty());
  for (int64_t chunk : {int64_t{2048}, int64_t{7}, int64_t{1}}) {
    const NamedTensors out =
        score(ctx_, golden.weights, golden.sequences,
              {.with_logits = true, .with_mtp = !golden.weights.mtp.empty(), .chunk_tokens = chunk});
    for (const auto& [name, tensor] : out) {
      expect_near(tensor, golden.file.read(name), 1e-4, name + " in chunks of " + std::to_string(chunk));
    }
  }
}

TEST_P(GoldenTest, GradientsOfTheLastSequence) {
  GoldenCase golden(GetParam());
  const std::string last = std::to_string(golden.sequences.size() - 1);
  const NamedTensors out =
      score(ctx_, golden.weights, {golden.sequences.back()}, {.with_gradients = true});
  std::map<std::string, Tensor> grads;
  for (const auto& [name, tensor] : out) grads[name] = tensor;
  EXPECT_NEAR(grads.at("loss").f32()[0], golden.file.read("loss." + last).f32()[0], 1e-5);
  int compared = 0;
  for (const TensorEntry& entry : golden.file.tensors()) {
    if (!entry.name.starts_with("grad_norm.")) continue;
    const std::string name = "grad." + entry.name.substr(10);
    const double want_norm = golden.file.read(entry.name).f32()[0];
    if (!grads.contains(name)) {
      EXPECT_EQ(want_norm, 0.0) << name;
      continue;
    }
    const Tensor& got = grads.at(name);
    EXPECT_NEAR(l2(got), want_norm, 1e-3 * want_norm + 1e-9) << name;
    if (golden.file.find(name) != nullptr) {
      const Tensor want = golden.file.read(name);
      Tensor difference = want.clone();
      for (int64_t i = 0; i < want.numel(); ++i) difference.f32()[i] -= got.f32()[i];
      EXPECT_LE(l2(difference), 1e-3 * want_norm + 1e-9) << name;
    }
    ++compared;
  }
  EXPECT_GT(compared, 20);
}

/// Largest logit, lower id on a tie.
int32_t greedy(const Tensor& z) {
  int32_t best = 0;
  for (int64_t i = 1; i < z.numel(); ++i) {
    if (z.f32()[i] > z.f32()[best]) best = static_cast<int32_t>(i);
  }
  return best;
}

TEST_P(GoldenTest, GreedyTokensWithAndWithoutCachedState) {
  GoldenCase golden(GetParam());
  const Tensor prompt = golden.file.read("greedy.prompt"), want = golden.file.read("greedy.tokens");
  const std::vector<int32_t> expected(want.i32(), want.i32() + want.numel());
  for (bool cached : {true, false}) {
    std::vector<int32_t> ids(prompt.i32(), prompt.i32() + prompt.numel()), generated;
    SequenceState state(golden.weights.config, 256, Precision::kFp32, test_device());
    int64_t done = 0;
    while (generated.size() < expected.size()) {
      Batch batch;
      batch.token_ids.assign(ids.begin() + (cached ? done : 0), ids.end());
      Segment segment;
      segment.start_pos = cached ? done : 0;
      segment.num_tokens = batch.num_tokens();
      segment.state = cached ? &state : nullptr;
      batch.segments.push_back(segment);
      done = static_cast<int64_t>(ids.size());
      const Tensor streams =
          forward_layers(ctx_, golden.weights, batch, embed(ctx_, golden.weights, batch));
      const Tensor hidden = collapse(ctx_, golden.weights, streams, {batch.num_tokens() - 1});
      generated.push_back(greedy(logits(ctx_, golden.weights, hidden)));
      ids.push_back(generated.back());
    }
    EXPECT_EQ(generated, expected) << (cached ? "cached" : "not cached");
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenTest, ::testing::Values("small", "release_shapes"));

}  // namespace
}  // namespace fathom
