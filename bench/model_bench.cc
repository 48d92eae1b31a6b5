// Forward+backward, decoding and shared prompts of a whole model on random weights. Prints one JSON
// object a line:
//   {"what": "train", "tokens": 2048, "threads": 2, "ms": ..., "tokens_per_s": ..., "gflops": ...}
// Usage: model_bench MODEL_CONFIG.json [threads|cuda [decode|train]]. Medians of several
// repetitions after a warm-up.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fathom/base/device.h"
#include "fathom/base/hash.h"
#include "fathom/base/json.h"
#include "fathom/base/process_memory.h"
#include "fathom/rollout/engine.h"
#include "fathom/train/supervised.h"

namespace fathom {
namespace {

constexpr int64_t kSequences = 64, kSequenceTokens = 33;  // 32 predicted tokens each
constexpr int64_t kPromptTokens = 12, kNewTokens = 64;
constexpr int64_t kLongPrompt = 512;

double median_seconds(int repetitions, const std::function<void()>& body) {
  body();
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// Multiply-adds of one token's matrix products, counted twice (flops), forward only.
double forward_flops_per_token(const Weights& w) {
  double parameters = 0.0;
  const ModelConfig& c = w.config;
  for_each_parameter(w, [&](const Parameter& p) {
    if (p.kind != ParameterKind::kMatrix || p.name.starts_with("mtp.")) return;
    double share = 1.0;
    if (p.name.find(".experts.") != std::string::npos) {
      share = static_cast<double>(c.num_experts_per_tok) / static_cast<double>(c.n_routed_experts);
    }
    parameters += share * static_cast<double>(p.numel());
  });
  return 2.0 * parameters;
}

void bench_train(const ExecContext& ctx, Weights& w, int threads) {
  std::vector<SupervisedExample> examples;
  for (int64_t s = 0; s < kSequences; ++s) {
    SupervisedExample e;
    for (int64_t t = 0; t < kSequenceTokens; ++t) {
      e.tokens.push_back(
          static_cast<int32_t>(mix64(static_cast<uint64_t>(s), static_cast<uint64_t>(t)) %
                               static_cast<uint64_t>(w.config.vocab_size)));
    }
    examples.push_back(std::move(e));
  }
  for_each_parameter(w, [](Parameter& p) { p.alloc_grad(); });
  const double seconds = median_seconds(
      10, [&] { supervised_forward_backward(ctx, w, examples, {.mtp_loss_scaling_factor = 0.0}); });
  const double tokens = static_cast<double>(kSequences * (kSequenceTokens - 1));
  // Forward, its recomputation, and twice as much again for the two gradients.
  const double flops = 4.0 * forward_flops_per_token(w) * tokens;
  std::printf(
      "{\"what\": \"train\", \"tokens\": %.0f, \"threads\": %d, \"ms\": %.2f, "
      "\"tokens_per_s\": %.0f, \"gflops\": %.1f}\n",
      tokens, threads, seconds * 1e3, tokens / seconds, flops / seconds * 1e-9);
}

void bench_decode(const ExecContext& ctx, const Weights& w, int threads, int64_t batch) {
  const double seconds = median_seconds(batch == 1 ? 10 : 5, [&] {
    Engine engine(ctx, w, {.max_running_requests = batch});
    for (int64_t b = 0; b < batch; ++b) {
      Request request;
      for (int64_t t = 0; t < kPromptTokens; ++t) {
        request.prompt_ids.push_back(
            static_cast<int32_t>(mix64(static_cast<uint64_t>(b), static_cast<uint64_t>(t)) %
                                 static_cast<uint64_t>(w.config.vocab_size)));
      }
      request.sampling.temperature = 0.0f;
      request.sampling.max_new_tokens = kNewTokens;
      request.sampling.ignore_eos = true;
      request.seeds = {0};
      engine.submit(std::move(request));
    }
    engine.run_until_done();
  });
  const double tokens = static_cast<double>(batch * kNewTokens);
  std::printf(
      "{\"what\": \"decode\", \"batch\": %ld, \"threads\": %d, \"ms_per_step\": %.3f, "
      "\"tokens_per_s\": %.0f}\n",
      static_cast<long>(batch), threads, seconds * 1e3 / static_cast<double>(kNewTokens),
      tokens / seconds);
}

Request prompt_of(const ModelConfig& config, int64_t num_tokens, int64_t num_samples) {
  Request request;
  for (int64_t t = 0; t < num_tokens; ++t) {
    request.prompt_ids.push_back(static_cast<int32_t>(mix64(7, static_cast<uint64_t>(t)) %
                                                      static_cast<uint64_t>(config.vocab_size)));
  }
  request.sampling.max_new_tokens = 1;
  for (int64_t s = 0; s < num_samples; ++s) request.seeds.push_back(static_cast<uint64_t>(s));
  return request;
}

/// What one token each of several samples of a long prompt cost, and the prompt sent once more.
void bench_prefix(const ExecContext& ctx, const Weights& w, int threads) {
  for (int64_t num_samples : {1, 8}) {
    const double seconds = median_seconds(10, [&] {
      Engine engine(ctx, w, {});
      engine.submit(prompt_of(w.config, kLongPrompt, num_samples));
      engine.run_until_done();
    });
    std::printf(
        "{\"what\": \"prefill\", \"prompt\": %ld, \"samples\": %ld, \"threads\": %d, "
        "\"ms\": %.3f}\n",
        static_cast<long>(kLongPrompt), static_cast<long>(num_samples), threads, seconds * 1e3);
  }
  Engine engine(ctx, w, {});
  int64_t num_cached = 0;
  const double seconds = median_seconds(10, [&] {  // the warm-up fills the cache
    engine.submit(prompt_of(w.config, kLongPrompt, 1));
    num_cached = engine.run_until_done().front().num_cached_tokens;
  });
  const PrefixCacheCounters& cache = engine.counters().prefix_cache;
  std::printf(
      "{\"what\": \"prefill again\", \"prompt\": %ld, \"cached_tokens\": %ld, "
      "\"hits\": %ld, \"threads\": %d, \"ms\": %.3f}\n",
      static_cast<long>(kLongPrompt), static_cast<long>(num_cached),
      static_cast<long>(cache.num_hits), threads, seconds * 1e3);
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  if (argc < 2) {
    std::fprintf(stderr,
                 "usage: model_bench MODEL_CONFIG.json [threads|cuda [decode|train|prefix]]\n");
    return 2;
  }
  keep_freed_memory();
  try {
    const bool on_device = argc > 2 && std::string(argv[2]) == "cuda";
    const int threads = argc > 2 && !on_device ? std::atoi(argv[2]) : 2;
    const std::unique_ptr<Device> device = on_device ? open_cuda_device() : nullptr;
    ThreadPool pool(threads);
    const ExecContext ctx{&pool, detect_cpu_isa(), device.get()};
    Weights w = make_weights(parse_model_config(read_json_file(argv[1]), argv[1]), false);
    init_random_weights(w, 1);
    move_weights(ctx, &w);
    if (on_device) std::printf("{\"device\": \"%s\"}\n", device->name().c_str());
    const std::string only = argc > 3 ? argv[3] : "";
    if (only.empty() || only == "decode") {
      for (int64_t batch : {1, 16, 64}) bench_decode(ctx, w, threads, batch);
    }
    if (only.empty() || only == "prefix") bench_prefix(ctx, w, threads);
    if (only.empty() || only == "train") bench_train(ctx, w, threads);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
