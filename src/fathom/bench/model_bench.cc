#include "fathom/bench/model_bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <vector>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/base/hash.h"
#include "fathom/bench/model_work.h"
#include "fathom/model/forward.h"
#include "fathom/rollout/engine.h"
#include "fathom/train/supervised.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

void wait_for(const ExecContext& ctx) {
  if (ctx.device != nullptr) ctx.device->synchronize();
}

double seconds_of(const ExecContext& ctx, const std::function<void()>& body) {
  wait_for(ctx);
  const auto start = Clock::now();
  body();
  wait_for(ctx);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<int32_t> random_tokens(const ModelConfig& config, uint64_t seed, int64_t n) {
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < n; ++t) {
    tokens.push_back(static_cast<int32_t>(mix64(seed, static_cast<uint64_t>(t)) %
                                          static_cast<uint64_t>(config.vocab_size)));
  }
  return tokens;
}

std::vector<double> time_forward(const ExecContext& ctx, const Weights& w,
                                 const BenchOptions& options) {
  Batch batch;
  std::vector<int64_t> rows;
  std::vector<int32_t> targets;
  for (int64_t s = 0; s < options.batch; ++s) {
    const auto tokens =
        random_tokens(w.config, mix64(options.seed, static_cast<uint64_t>(s)), options.tokens + 1);
    batch.token_ids.insert(batch.token_ids.end(), tokens.begin(), tokens.end() - 1);
    targets.insert(targets.end(), tokens.begin() + 1, tokens.end());
    batch.segments.push_back({.start_pos = 0, .num_tokens = options.tokens});
  }
  for (int64_t r = 0; r < batch.num_tokens(); ++r) rows.push_back(r);
  std::vector<double> times;
  for (int64_t i = 0; i <= options.repetitions; ++i) {
    times.push_back(seconds_of(ctx, [&] {
      const Tensor streams = forward_layers(ctx, w, batch, embed(ctx, w, batch));
      log_probs(ctx, w, collapse(ctx, w, streams, rows), targets, 1.0f);
    }));
  }
  return times;
}

std::vector<double> time_train(const ExecContext& ctx, Weights& w, const BenchOptions& options) {
  std::vector<SupervisedExample> examples;
  for (int64_t s = 0; s < options.batch; ++s) {
    SupervisedExample e;
    e.tokens =
        random_tokens(w.config, mix64(options.seed, static_cast<uint64_t>(s)), options.tokens + 1);
    examples.push_back(std::move(e));
  }
  for_each_parameter(w, [](Parameter& p) { p.alloc_grad(); });
  const SupervisedOptions supervised = {
      .max_tokens_per_micro_batch = options.batch * (options.tokens + 1),
      .mtp_loss_scaling_factor = 0.0};
  std::vector<double> times;
  for (int64_t i = 0; i <= options.repetitions; ++i) {
    times.push_back(
        seconds_of(ctx, [&] { supervised_forward_backward(ctx, w, examples, supervised); }));
  }
  return times;
}

/// Times of single steps, once every answer is under way.
std::vector<double> time_decode(const ExecContext& ctx, const Weights& w,
                                const BenchOptions& options) {
  const int64_t num_steps = options.repetitions + 1;
  FATHOM_CHECK(options.tokens >= 2, "bench: a context of ", options.tokens,
               " tokens, needs at least 2");
  Engine engine(ctx, w, {.max_running_requests = options.batch, .prefix_cache = false});
  for (int64_t b = 0; b < options.batch; ++b) {
    Request request;
    request.prompt_ids =
        random_tokens(w.config, mix64(options.seed, static_cast<uint64_t>(b)), options.tokens);
    request.sampling.temperature = 0.0f;
    // Answers that have begun go on until the last prompt is in.
    request.sampling.max_new_tokens = options.batch * (options.tokens / 2048 + 2) + num_steps + 8;
    request.sampling.ignore_eos = true;
    request.seeds = {0};
    engine.submit(std::move(request));
  }
  const int64_t prompts = options.batch * options.tokens;
  while (engine.counters().num_prompt_tokens < prompts) {
    FATHOM_CHECK(engine.step(), "bench: the engine had nothing to do before all prompts were in");
  }
  std::vector<double> times;
  for (int64_t i = 0; i < num_steps; ++i) {
    const int64_t before = engine.counters().num_generated_tokens;
    times.push_back(seconds_of(ctx, [&] { engine.step(); }));
    FATHOM_CHECK(engine.counters().num_generated_tokens - before == options.batch,
                 "bench: a step drew ", engine.counters().num_generated_tokens - before,
                 " tokens, ", options.batch, " answers should run");
  }
  return times;
}

struct Limits {
  double tflops, gb_per_s;
};

/// Dense products and memory of cards that we know.
std::optional<Limits> limits_of(const std::string& device, Precision precision) {
  const bool fp8 = precision == Precision::kParityFp8;
  const double tflops = precision == Precision::kFp32 ? 67.0 : fp8 ? 1979.0 : 989.0;
  if (device.find("H100") != std::string::npos) return Limits{tflops, 3350.0};
  if (device.find("H200") != std::string::npos) return Limits{tflops, 4800.0};
  return std::nullopt;
}

double bytes_per_weight(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return 4.0;
    case Precision::kParityBf16:
      return 2.0;
    case Precision::kParityFp8:
      return 1.0;
  }
  return 4.0;
}

double peak_memory_bytes(const ExecContext& ctx) {
  if (ctx.device != nullptr) return static_cast<double>(ctx.device->memory_use().peak_bytes);
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024.0;
}

}  // namespace

Json bench_model(const ExecContext& ctx, Weights* weights, const BenchOptions& options) {
  Weights& w = *weights;
  FATHOM_CHECK(options.tokens >= 1 && options.batch >= 1 && options.repetitions >= 1,
               "bench: ", options.tokens, " tokens, batch ", options.batch, ", ",
               options.repetitions, " repetitions: all must be at least 1");
  FATHOM_CHECK(options.tokens < w.config.max_position_embeddings, "bench: ", options.tokens,
               " tokens, the model's max_position_embeddings is ",
               w.config.max_position_embeddings);
  const double bytes = bytes_per_weight(w.precision());
  std::vector<double> times;
  WorkAmount work;
  double num_tokens = static_cast<double>(options.batch * options.tokens);
  std::string mode;
  switch (options.mode) {
    case BenchMode::kForward:
      mode = "forward";
      times = time_forward(ctx, w, options);
      work = forward_work(w, options.batch, options.tokens, bytes);
      break;
    case BenchMode::kTrain:
      mode = "train";
      times = time_train(ctx, w, options);
      work = train_work(w, options.batch, options.tokens, bytes);
      break;
    case BenchMode::kDecode:
      mode = "decode";
      times = time_decode(ctx, w, options);
      work = decode_work(w, options.batch, options.tokens, bytes);
      num_tokens = static_cast<double>(options.batch);
      break;
  }
  times.erase(times.begin());  // the warm-up
  std::sort(times.begin(), times.end());
  const double seconds = times[times.size() / 2];
  const std::string device = ctx.device == nullptr ? "cpu" : ctx.device->name();
  const auto known = limits_of(device, w.precision());
  std::optional<double> tflops = options.peak_tflops, gb_per_s = options.peak_gb_per_s;
  if (known && !tflops) tflops = known->tflops;
  if (known && !gb_per_s) gb_per_s = known->gb_per_s;
  const double all_bytes = work.weight_bytes + work.state_bytes;
  Json result = {{"mode", mode},
                 {"device", device},
                 {"precision", precision_name(w.precision())},
                 {"tokens", options.tokens},
                 {"batch", options.batch},
                 {"ms", seconds * 1e3},
                 {"spread", {times.front() * 1e3, times.back() * 1e3}},
                 {"repetitions", options.repetitions},
                 {"tokens_per_s", num_tokens / seconds},
                 {"tflops", work.flops / seconds * 1e-12},
                 {"gb_per_s", all_bytes / seconds * 1e-9},
                 {"roofline_ms", nullptr},
                 {"share_of_roofline", nullptr},
                 {"memory_gb", peak_memory_bytes(ctx) * 1e-9}};
  if (tflops && gb_per_s) {
    const double least = std::max(work.flops / (*tflops * 1e12), all_bytes / (*gb_per_s * 1e9));
    result["roofline_ms"] = least * 1e3;
    result["share_of_roofline"] = least / seconds;
  }
  return result;
}

std::string bench_text(const Json& r) {
  char text[512];
  std::snprintf(text, sizeof text,
                "%s on %s, %s: %ld x %ld tokens\n"
                "  median %.3f ms of %ld (%.3f to %.3f), %.0f tokens/s\n"
                "  %.3f TFLOP/s, %.1f GB/s, %.2f GB of memory at most\n",
                r["mode"].get<std::string>().c_str(), r["device"].get<std::string>().c_str(),
                r["precision"].get<std::string>().c_str(), r["batch"].get<long>(),
                r["tokens"].get<long>(), r["ms"].get<double>(), r["repetitions"].get<long>(),
                r["spread"][0].get<double>(), r["spread"][1].get<double>(),
                r["tokens_per_s"].get<double>(), r["tflops"].get<double>(),
                r["gb_per_s"].get<double>(), r["memory_gb"].get<double>());
  std::string result = text;
  if (r["roofline_ms"].is_null()) return result;
  std::snprintf(text, sizeof text, "  roofline %.3f ms: %.1f %% of it\n",
                r["roofline_ms"].get<double>(), 100.0 * r["share_of_roofline"].get<double>());
  return result + text;
}

}  // namespace fathom
