#include "fathom/bench/model_bench.h"

#include <gtest/gtest.h>

#include "fathom/base/error.h"
#include "fathom/bench/model_work.h"
#include "fathom/model/named_models.h"
#include "fathom/train/supervised.h"

namespace fathom {
namespace {

ModelConfig small_config() {
  ModelConfig c = named_model("v4flash-4layer-64e");
  c.vocab_size = 128;
  c.hidden_size = 64;
  c.num_attention_heads = 4;
  c.head_dim = 32;
  c.qk_rope_head_dim = 8;
  c.q_lora_rank = 32;
  c.o_groups = 2;
  c.o_lora_rank = 16;
  c.sliding_window = 8;
  c.compress_ratios = {0, 0, 4, 16};
  c.index_n_heads = 2;
  c.index_head_dim = 16;
  c.index_topk = 4;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 32;
  c.max_position_embeddings = 4096;
  return c;
}

TEST(NamedModels, HaveTheReleasedSizes) {
  const auto parameters = [](const std::string& name) {
    int64_t n = 0;
    const Weights w = make_weights(named_model(name));
    for_each_parameter(w, [&](const Parameter& p) {
      if (p.kind != ParameterKind::kTable) n += p.numel();
    });
    return n;
  };
  // The published totals with the MTP module; the cut has none.
  EXPECT_NEAR(static_cast<double>(parameters("v4flash-4layer-64e")), 8.1e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(parameters("v4flash")), 291e9, 3e9);
  EXPECT_THROW(named_model("v5"), UserError);
}

TEST(ModelWork, CountsWhatCanBeCountedByHand) {
  const ModelConfig c = small_config();
  const Weights w = make_weights(c, false);
  // One token: no compressed entries, a window of one key per layer, two of eight experts.
  double matrices = 0.0;
  for_each_parameter(w, [&](const Parameter& p) {
    if (p.kind != ParameterKind::kMatrix) return;
    const bool routed = p.name.find(".experts.") != std::string::npos;
    matrices += static_cast<double>(p.numel()) * (routed ? 0.25 : 1.0);
  });
  const double attention = 4.0 * 4 * 32 * 4;  // 4 heads of 32, one key, 4 layers
  EXPECT_DOUBLE_EQ(forward_work(w, 1, 1, 4.0).flops, 2.0 * matrices + attention);
  EXPECT_DOUBLE_EQ(train_work(w, 1, 1, 4.0).flops, 3.0 * (2.0 * matrices + attention));
  EXPECT_DOUBLE_EQ(forward_work(w, 1, 1, 2.0).weight_bytes, 2.0 * matrices);
  EXPECT_DOUBLE_EQ(forward_work(w, 3, 7, 4.0).flops, 3.0 * forward_work(w, 1, 7, 4.0).flops);
  // A context of 100: 8 window keys, 4 picks of 25 entries, 6 entries of ratio 16.
  const double keys = 8 + 8 + (8 + 4) + (8 + 6);
  EXPECT_DOUBLE_EQ(decode_work(w, 1, 100, 4.0).state_bytes, 4.0 * (keys * 32 + 25 * 16));
}

TEST(ModelBench, MeasuresEveryMode) {
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  Weights w = make_weights(small_config(), false);
  init_random_weights(w, 1);
  set_precision(ctx, &w, Precision::kFp32);
  for (const BenchMode mode : {BenchMode::kForward, BenchMode::kTrain, BenchMode::kDecode}) {
    const Json r = bench_model(ctx, &w,
                               {.mode = mode,
                                .tokens = 24,
                                .batch = 3,
                                .repetitions = 3,
                                .peak_tflops = 1e-3,
                                .peak_gb_per_s = 1e9});
    EXPECT_GT(r["ms"].get<double>(), 0.0);
    EXPECT_LE(r["spread"][0].get<double>(), r["ms"].get<double>());
    EXPECT_GE(r["spread"][1].get<double>(), r["ms"].get<double>());
    const double tokens = mode == BenchMode::kDecode ? 3.0 : 72.0;
    EXPECT_NEAR(r["tokens_per_s"].get<double>() * r["ms"].get<double>() * 1e-3, tokens, 1e-6);
    EXPECT_NEAR(r["share_of_roofline"].get<double>(), r["tflops"].get<double>() / 1e-3, 1e-9);
    EXPECT_GT(r["memory_gb"].get<double>(), 0.0);
    EXPECT_FALSE(bench_text(r).empty());
  }
  EXPECT_THROW(bench_model(ctx, &w, {.tokens = 5000}), UserError);
  EXPECT_THROW(bench_model(ctx, &w, {.tokens = 0}), UserError);
}

}  // namespace
}  // namespace fathom
