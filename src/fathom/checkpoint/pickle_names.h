// Which globals a pickle of each kind may name.
#pragma once

#include <string_view>

#include "fathom/checkpoint/pickle.h"

namespace fathom {

/// @param name "module name" with Python 3 spelling.
bool is_hostile_global(std::string_view name);
/// True for names on the file kind's list. PickleFile::kCommon takes others as inert leaves.
bool is_known_global(std::string_view name, PickleFile file);

}  // namespace fathom
