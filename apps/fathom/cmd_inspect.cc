// What lies at a path: a safetensors file, a model, torch_dist weights, training checkpoints, a
// run.
#include <cstdio>

#include "commands.h"
#include "fathom/checkpoint/inspect.h"

namespace fathom {

int run_inspect(const config::ParsedCommand& command) {
  const config::ToolOptions& o = command.options.tool;
  const Json found = inspect_path(*o.path);
  const std::string text = o.json ? found.dump(2) + "\n" : inspect_table(found);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace fathom
