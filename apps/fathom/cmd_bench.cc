#include <cstdio>

#include "commands.h"
#include "execution.h"
#include "fathom/base/log.h"
#include "fathom/bench/model_bench.h"
#include "fathom/model/named_models.h"
#include "fathom/train/supervised.h"

namespace fathom {
namespace {

BenchMode mode_of(config::BenchMode mode) {
  switch (mode) {
    case config::BenchMode::kForward:
      return BenchMode::kForward;
    case config::BenchMode::kTrain:
      return BenchMode::kTrain;
    case config::BenchMode::kDecode:
      return BenchMode::kDecode;
  }
  return BenchMode::kForward;
}

}  // namespace

int run_bench(const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  const ModelConfig model = named_or_stored_model(*o.bench.model);
  const Execution execution(o.runtime);
  const ExecContext& ctx = execution.context();
  Weights weights = make_weights(model, /*with_mtp=*/false);
  init_random_weights(weights, static_cast<uint64_t>(o.train.seed));
  weights = in_precision(ctx, std::move(weights), o);
  const Json result = bench_model(ctx, &weights,
                                  {.mode = mode_of(o.bench.mode),
                                   .tokens = o.bench.tokens,
                                   .batch = o.bench.batch,
                                   .repetitions = o.bench.repetitions,
                                   .seed = static_cast<uint64_t>(o.train.seed),
                                   .peak_tflops = o.bench.peak_tflops,
                                   .peak_gb_per_s = o.bench.peak_gb_per_s});
  std::fputs(o.tool.json ? (result.dump() + "\n").c_str() : bench_text(result).c_str(), stdout);
  return 0;
}

}  // namespace fathom
