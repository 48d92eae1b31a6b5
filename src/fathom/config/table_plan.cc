// Rows of the planner, beside those of the recipe.
#include "fathom/config/table.h"

namespace fathom::config {

void describe_plan_options(OptionTable& table, Options& options) {
  PlanOptions& o = options.plan;
  table.group("Plan", set_of(Command::kPlan));
  table
      .add("sequence-tokens", &o.sequence_tokens,
           "tokens of a sample; unset: --rollout-max-context-len, else --rollout-max-prompt-len "
           "(1024 where that is unset) and --rollout-max-response-len")
      .at_least(2);
  table.add("device-memory-gb", &o.device_memory_gb, "memory of a rank; unset: by --hardware")
      .above(0);
  table
      .add("host-memory-gb", &o.host_memory_gb,
           "a rank's share of its node's memory; unset: by --hardware")
      .at_least(0);
  table.add("bf16-gradients", &o.bf16_gradients, "gradients in BF16 in place of fp32");
  table.add("bf16-moments", &o.bf16_moments, "the optimizer's moments in BF16 in place of fp32");
}

}  // namespace fathom::config
