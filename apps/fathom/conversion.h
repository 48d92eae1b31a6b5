// The conversion to torch_dist, from options.
#pragma once

#include <string>

#include "fathom/base/exec_context.h"
#include "fathom/config/options.h"
#include "fathom/dist/rank_environment.h"

namespace fathom {

/// @param process of several that convert together; each calls this with its own.
void convert_to_torch_dist(const ExecContext& ctx, const config::Options& options,
                           const dist::RankEnvironment& process, const std::string& from,
                           const std::string& to);

/// What each rank would get, printed: in the layout of the options, or when they give none in those
/// of the recipe. @param is_layout_given whether the user named one.
void print_conversion_plans(const config::Options& options, bool is_layout_given,
                            const std::string& from);

}  // namespace fathom
