// A model or data set from a Hub, into the shared cache or a directory; prints where it is.
#include "commands.h"
#include "hub_download.h"

namespace fathom {

int run_download(const config::ParsedCommand& command) {
  return download_from_hub(command.options.hub, command.options.tool.dry_run);
}

}  // namespace fathom
