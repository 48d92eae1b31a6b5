// The parity modes against an fp64 model with the roundings put in by hand (precision/reference.py,
// which shares no code with the program and agrees with transformers when it rounds nothing).
// Layers get the reference's own input, so nearly every element must be the reference's to the bit:
// a rounding that is left out, moved or of another kind changes most of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/safetensors.h"
#include "fathom/model/batch_plan.h"
#include "fathom/model/forward.h"
#include "fathom/model/layer.h"
#include "fathom/numerics/formats.h"
#include "fathom/train/score.h"

namespace fathom {
namespace {

struct PrecisionCase {
  std::string model;
  Precision precision;
  // Share of elements with the reference's bits in every layer. A rounding that fell to the other
  // side of a tie moves about half of its token's outputs by one step; in a window row, also those
  // of later tokens.
  double min_equal;
  int64_t grad_stride;        // of the gradients that the file keeps
  double min_away, max_away;  // mean distance of log-probs from fp32
};

void PrintTo(const PrecisionCase& c, std::ostream* out) {
  *out << c.model << " in " << precision_name(c.precision);
}

class PrecisionTest : public ::testing::TestWithParam<PrecisionCase> {
 protected:
  PrecisionTest()
      : directory_(std::string(FATHOM_SOURCE_DIR) + "/tests/golden/"),
        file_(directory_ + "precision/" + GetParam().model + ".safetensors"),
        weights_(load_weights(ctx_, directory_ + GetParam().model + "/model")) {
    set_precision(ctx_, &weights_, GetParam().precision);
    const Tensor ids = file_.read("ids");
    batch_.token_ids.assign(ids.i32(), ids.i32() + ids.numel());
    for (int64_t s = 0; s < ids.dim(0); ++s) batch_.segments.push_back({.num_tokens = ids.dim(1)});
  }

  std::string key(const std::string& name) const {
    return std::string(precision_name(GetParam().precision)) + "." + name;
  }
  Tensor read_bf16(const std::string& name) const {
    const Tensor codes = file_.read(name);
    Tensor values = Tensor::empty(codes.shape());
    for (int64_t i = 0; i < codes.numel(); ++i) values.f32()[i] = bf16_to_f32(codes.u16()[i]);
    return values;
  }
  int64_t num_layers() const { return weights_.config.num_hidden_layers; }
  LayerId id_of(int64_t layer) const { return {layer, -1, -1}; }

  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, detect_cpu_isa()};
  std::string directory_;
  SafetensorsFile file_;
  Weights weights_;
  Batch batch_;
};

double norm(const float* x, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return std::sqrt(sum);
}

double relative_error(const Tensor& got, const Tensor& want) {
  Tensor difference = got.clone();
  for (int64_t i = 0; i < got.numel(); ++i) difference.f32()[i] -= want.f32()[i];
  return norm(difference.f32(), got.numel()) / (norm(want.f32(), want.numel()) + 1e-30);
}

/// Share of elements with the same bits.
double share_equal(const Tensor& got, const Tensor& want) {
  int64_t equal = 0;
  for (int64_t i = 0; i < got.numel(); ++i) equal += got.f32()[i] == want.f32()[i];
  return static_cast<double>(equal) / static_cast<double>(got.numel());
}

TEST_P(PrecisionTest, LayersAreTheReferenceBitForBitButForTies) {
  const BatchPlan plan = make_batch_plan(ctx_, weights_.config, weights_.layout, batch_, /*for_mtp=*/false);
  Weights in_fp32 = weights_;
  set_precision(ctx_, &in_fp32, Precision::kFp32);
  for (int64_t l = 0; l < num_layers(); ++l) {
    SCOPED_TRACE("layer " + std::to_string(l));
    const Tensor x = read_bf16(key("streams." + std::to_string(l)));
    const Tensor want = read_bf16(key("streams." + std::to_string(l + 1)));
    const auto run = [&](const LayerWeights& w) {
      return layer_forward(ctx_, weights_.config, w, batch_, plan, id_of(l), x);
    };
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(l)];
    const Tensor got = run(layer);
    EXPECT_GE(share_equal(got, want), GetParam().min_equal);
    const double away = relative_error(run(in_fp32.layers[static_cast<size_t>(l)]), want);
    EXPECT_LT(relative_error(got, want), 0.75 * away);
    // One sublayer that does not round is seen.
    LayerWeights attention_in_fp32 = layer, experts_in_fp32 = layer;
    attention_in_fp32.attn.rounding = Rounding();
    experts_in_fp32.ffn.rounding = Rounding();
    EXPECT_LT(share_equal(run(attention_in_fp32), want), 0.7);
    EXPECT_LT(share_equal(run(experts_in_fp32), want), 0.7);
  }
}

TEST_P(PrecisionTest, TheMtpModuleIsTheReferenceBitForBitButForTies) {
  if (weights_.mtp.empty()) GTEST_SKIP() << "no MTP module";
  const Tensor want = read_bf16(key("mtp_out"));
  const Tensor final_streams = read_bf16(key("streams." + std::to_string(num_layers())));
  const int64_t width = want.dim(1) * want.dim(2);
  Tensor streams = Tensor::empty(want.shape());
  Batch shifted;
  int64_t row = 0, out = 0;
  for (const Segment& s : batch_.segments) {
    const int64_t n = s.num_tokens - 1;
    std::copy_n(final_streams.f32() + row * width, n * width, streams.f32() + out * width);
    for (int64_t t = 1; t <= n; ++t) {
      shifted.token_ids.push_back(batch_.token_ids[static_cast<size_t>(row + t)]);
    }
    shifted.segments.push_back({.num_tokens = n});
    row += n + 1;
    out += n;
  }
  const Tensor got = mtp(ctx_, weights_, shifted, streams, shifted.token_ids);
  EXPECT_GE(share_equal(got, want), GetParam().min_equal);
}

TEST_P(PrecisionTest, GradientsOfLayersAreTheReferenceStraightThrough) {
  const BatchPlan plan = make_batch_plan(ctx_, weights_.config, weights_.layout, batch_, /*for_mtp=*/false);
  const Tensor dout = read_bf16("dout");
  for_each_parameter(weights_, [](Parameter& p) { p.alloc_grad(); });
  for (int64_t l = 0; l < num_layers(); ++l) {
    const Tensor x = read_bf16(key("streams." + std::to_string(l)));
    LayerWeights& layer = weights_.layers[static_cast<size_t>(l)];
    const Tensor din =
        layer_backward(ctx_, weights_.config, layer, batch_, plan, id_of(l), x, dout);
    // The file's BF16 alone is 0.0017 away.
    EXPECT_LT(relative_error(din, read_bf16(key("din." + std::to_string(l)))), 0.006) << l;
  }
  std::vector<double> errors;
  for_each_parameter(weights_, [&](Parameter& p) {
    const std::string name = key("grad." + p.name);
    if (file_.find(name) == nullptr) return;
    const Tensor want = read_bf16(name);
    std::vector<float> grad(static_cast<size_t>(p.numel()));
    p.get_grad_row_major(grad.data());
    Tensor got = Tensor::empty(want.shape());
    for (int64_t i = 0; i < want.numel(); ++i) {
      got.f32()[i] = grad[static_cast<size_t>(i * GetParam().grad_stride)];
    }
    errors.push_back(relative_error(got, want));
    // Scales of hyper-connections are sums that nearly cancel.
    EXPECT_LT(errors.back(), p.name.ends_with("_scale") ? 0.1 : 0.03) << p.name;
  });
  ASSERT_GT(errors.size(), 100u);
  // A weight's gradient from an operand that was not quantised would be some 0.03 away.
  std::nth_element(errors.begin(), errors.begin() + static_cast<int64_t>(errors.size() / 2),
                   errors.end());
  EXPECT_LT(errors[errors.size() / 2], 0.004);
}

TEST_P(PrecisionTest, FirstRowsOfTheWholeModelAreTheReferenceAndAwayFromFp32) {
  const Tensor want = file_.read(key("logits"));
  Batch batch;
  batch.token_ids.assign(batch_.token_ids.begin(), batch_.token_ids.begin() + want.dim(0));
  batch.segments.push_back({.num_tokens = want.dim(0)});
  std::vector<int64_t> rows;
  for (int64_t t = 0; t < want.dim(0); ++t) rows.push_back(t);
  const auto run = [&](const Weights& w) {
    return logits(ctx_, w,
                  collapse(ctx_, w, forward_layers(ctx_, w, batch, embed(ctx_, w, batch)), rows));
  };
  const Tensor got = run(weights_);
  set_precision(ctx_, &weights_, Precision::kFp32);
  const Tensor in_fp32 = run(weights_);
  // Rows that met no tie on the way are the reference's up to fp32.
  int num_same = 0;
  for (int64_t t = 0; t < want.dim(0); ++t) {
    const bool same = relative_error(got.rows(t, t + 1), want.rows(t, t + 1)) < 1e-5;
    num_same += same;
    if (same) {
      EXPECT_GT(relative_error(in_fp32.rows(t, t + 1), want.rows(t, t + 1)), 1e-3);
    }
  }
  EXPECT_GE(num_same, 1);
}

TEST_P(PrecisionTest, LogProbsStayNearFp32) {
  const SafetensorsFile golden(directory_ + GetParam().model + "/case.safetensors");
  for (const char* i : {"0", "1"}) {
    const Tensor ids = golden.read(std::string("ids.") + i);
    const Tensor want = golden.read(std::string("logprobs.") + i);
    const NamedTensors out =
        score(ctx_, weights_, {std::vector<int32_t>(ids.i32(), ids.i32() + ids.numel())}, {});
    double away = 0.0;
    for (int64_t t = 0; t < want.numel(); ++t) {
      away += std::fabs(static_cast<double>(out[0].second.f32()[t]) - want.f32()[t]);
    }
    away /= static_cast<double>(want.numel());
    EXPECT_GT(away, GetParam().min_away) << "sequence " << i;
    EXPECT_LT(away, GetParam().max_away) << "sequence " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, PrecisionTest,
    ::testing::Values(PrecisionCase{"small", Precision::kParityBf16, 0.85, 7, 0.01, 0.06},
                      PrecisionCase{"small", Precision::kParityFp8, 0.95, 7, 0.1, 0.45},
                      PrecisionCase{"release_shapes", Precision::kParityBf16, 0.6, 37, 0.005, 0.03},
                      PrecisionCase{"release_shapes", Precision::kParityFp8, 0.93, 37, 0.05, 0.3}),
    [](const auto& test) {
      std::string name = test.param.model + "_" + precision_name(test.param.precision);
      std::erase(name, '-');
      return name;
    });

}  // namespace
}  // namespace fathom
