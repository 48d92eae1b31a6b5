#include "commands.h"
#include "fathom/tokenizer/tokenize_lines.h"

namespace fathom {

int run_tokenize(const config::ParsedCommand& command) {
  const config::Options& o = command.options;
  tokenize_files(*o.launch.hf_checkpoint, o.tool.input, o.tool.output);
  return 0;
}

}  // namespace fathom
