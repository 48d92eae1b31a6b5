// The layout that a command's options ask for, on the ranks that there are.
#pragma once

#include "fathom/config/options.h"
#include "fathom/dist/group.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

/// Errors: ConfigError when the sizes do not divide the number of ranks, or stages the layers.
RankGroups rank_groups(const dist::Group& ranks, const config::Options& options,
                       const ModelConfig& model);

}  // namespace fathom
