// Checkpoints of a training run: masters, Adam moments and everything else that decides the next
// step, so that a resumed run gives the bits of an uninterrupted one.
//
//   <save>/iter_0000019/        a DCP directory (dcp_writer.h); one per saved step, 0-based
//     <model key>                             fp32 master, every parameter
//     optimizer.state.param.<model key>       the same bytes, trained parameters only
//     optimizer.state.exp_avg.<model key>     fp32, likewise exp_avg_sq
//     training_state.json                     the step and the caller's scalars
//   <save>/latest_checkpointed_iteration.txt  the newest step, written last
//
// A directory appears under its name only when it is whole and on the disk, and the tracker
// follows: a run that is killed at any moment goes on from the step that the tracker names.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/model/weights.h"

namespace fathom {

/// Moments of one trained parameter, in its master's layout.
struct MomentsView {
  const Parameter* parameter;
  Tensor exp_avg, exp_avg_sq;
};

/// @param retain_interval after saving, older checkpoints are removed but for those whose step + 1
/// is a multiple of it; none: all are kept.
/// Errors: UserError (no space, no permission, another process saves there); older checkpoints are
/// untouched then.
void save_training_state(const std::string& save_dir, int64_t step, const Weights& weights,
                         const std::vector<MomentsView>& moments, const Json& scalars,
                         std::optional<int64_t> retain_interval);

/// Fills the masters of `weights` and the moments (memory allocated, same model, same trained
/// parameters) and returns the scalars.
/// Errors: UserError for a damaged checkpoint or one of another model or set of trained parameters.
Json load_training_state(const std::string& save_dir, int64_t step, Weights* weights,
                         const std::vector<MomentsView>& moments);

/// The step that the tracker names; null when nothing was saved yet.
/// Errors: UserError when its directory is not whole.
std::optional<int64_t> latest_training_state(const std::string& save_dir);

/// Steps of all whole checkpoints, ascending.
std::vector<int64_t> list_training_states(const std::string& save_dir);

/// Any record with `parameter`, `exp_avg` and `exp_avg_sq`, such as the optimizer's.
template <typename Moments>
std::vector<MomentsView> moments_views(const std::vector<Moments>& moments) {
  std::vector<MomentsView> views;
  for (const Moments& m : moments) views.push_back({m.parameter, m.exp_avg, m.exp_avg_sq});
  return views;
}
template <typename Moments>
void save_training_state(const std::string& save_dir, int64_t step, const Weights& weights,
                         const std::vector<Moments>& moments, const Json& scalars,
                         std::optional<int64_t> retain_interval) {
  save_training_state(save_dir, step, weights, moments_views(moments), scalars, retain_interval);
}
template <typename Moments>
Json load_training_state(const std::string& save_dir, int64_t step, Weights* weights,
                         std::vector<Moments>* moments) {
  return load_training_state(save_dir, step, weights, moments_views(*moments));
}

}  // namespace fathom
