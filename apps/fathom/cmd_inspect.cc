// What lies at a path: a safetensors file, a model, torch_dist weights, training checkpoints, a
// run. Whether it is sound, and how it differs from another one.
#include <cstdio>

#include "commands.h"
#include "fathom/base/error.h"
#include "fathom/checkpoint/inspect.h"
#include "fathom/checkpoint/inspect_diff.h"
#include "fathom/checkpoint/inspect_verify.h"

namespace fathom {
namespace {

void print(const Json& found, bool as_json, std::string (*table)(const Json&)) {
  const std::string text = as_json ? found.dump(2) + "\n" : table(found);
  std::fputs(text.c_str(), stdout);
}

}  // namespace

int run_inspect(const config::ParsedCommand& command) {
  const config::ToolOptions& o = command.options.tool;
  if (!o.diff.empty()) {
    const std::string& a = o.path ? *o.path : o.diff[0];
    const Json diff = diff_checkpoints(a, o.diff.back());
    print(diff, o.json, diff_table);
    return diff["equal"].get<bool>() ? 0 : 1;  // as of diff and cmp
  }
  if (o.verify) {
    const Json report = verify_path(*o.path);
    print(report, o.json, verify_table);
    FATHOM_CHECK(report["ok"].get<bool>(), *o.path, ": ", report["problems"].size(),
                 report["problems"].size() == 1 ? " problem" : " problems",
                 ", the first: ", report["problems"][0].get<std::string>());
    return 0;
  }
  print(inspect_path(*o.path), o.json, inspect_table);
  return 0;
}

}  // namespace fathom
