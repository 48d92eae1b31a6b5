// plan: what a recipe would take, and whether it fits. And the dry run of train and full-train.
#include <cstdio>

#include "commands.h"
#include "fathom/base/error.h"
#include "fathom/plan/dry_run.h"
#include "fathom/plan/from_options.h"
#include "fathom/plan/plan.h"

namespace fathom {

int run_plan(const config::ParsedCommand& command) {
  const PlanRequest request = plan_request(command);
  const Plan plan = make_plan(request);
  const std::string text = command.options.tool.json ? plan_json(request, plan).dump(2) + "\n"
                                                     : plan_table(request, plan);
  std::fputs(text.c_str(), stdout);
  return 0;
}

int run_dry(const config::ParsedCommand& command) {
  const PlanRequest request = plan_request(command);
  const DryRun run = dry_run(request);
  std::fputs(dry_run_table(request, run).c_str(), stdout);
  FATHOM_CHECK(run.fault.empty(), "dry run: ", run.fault);
  return 0;
}

}  // namespace fathom
