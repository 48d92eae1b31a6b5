// Which processes of a run show their log: one of several is enough.
#pragma once

namespace fathom {

/// False: lines of the log go to the log file alone, where there is one, not to standard error.
void show_log(bool on_screen);

}  // namespace fathom
