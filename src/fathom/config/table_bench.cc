// Rows of the speed benchmark.
#include "fathom/config/table.h"

namespace fathom::config {

void describe_bench_options(OptionTable& table, Options& options) {
  BenchOptions& o = options.bench;
  table.group("Benchmark", set_of(Command::kBench));
  table
      .add("model", &o.model,
           "v4flash, v4pro, v4flash-4layer, v4flash-4layer-64e, a config.json or a directory with "
           "one; weights are random")
      .for_commands(set_of(Command::kBench, Command::kPlan))
      .required_for(set_of(Command::kBench));
  table
      .add_choice<BenchMode>("mode", &o.mode,
                             {{"forward", BenchMode::kForward},
                              {"train", BenchMode::kTrain},
                              {"decode", BenchMode::kDecode}},
                             "log-probs of every token; forward and backward, without an "
                             "optimizer's step; or a token each of running answers")
      .not_in_environment();
  table.add("tokens", &o.tokens, "of a sequence; in decode: of the context").at_least(1);
  table.add("batch", &o.batch, "sequences at a time").at_least(1);
  table
      .add_choice<Recompute>("recompute", &o.recompute,
                             {{"none", Recompute::kNone}, {"layer", Recompute::kLayer}},
                             "what the backward computes again: every layer from its input, or "
                             "nothing")
      .built_only({"layer"}, "Activations are always computed again, layer by layer, so far.");
  table.add("repetitions", &o.repetitions, "measured after a warm-up; the median counts")
      .at_least(1)
      .at_most(10'000);
  table.add("peak-tflops", &o.peak_tflops, "what the device can compute; unset: by its name")
      .above(0.0);
  table.add("peak-gb-per-s", &o.peak_gb_per_s, "what it can read; unset: by its name").above(0.0);
}

}  // namespace fathom::config
