// With whom a rank of a training job does what.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fathom/dist/group.h"
#include "fathom/dist/mesh.h"
#include "fathom/model/config.h"
#include "fathom/model/layout.h"

namespace fathom {

struct RankGroups {
  dist::Group everyone;  // all ranks of the job
  dist::Group data;      // share the samples of a step
  dist::Group stages;    // share the layers, in order
  dist::Group replicas;  // have the same weights: add their gradients, share the optimizer's state
  Layout layout;         // what of the model this rank has

  RankGroups() = default;
  /// Ranks that have all of the model and share the samples alone.
  RankGroups(dist::Group ranks) : everyone(ranks), data(ranks), replicas(std::move(ranks)) {}

  /// Whether what this rank has computed from its samples is what its stage, or the last one, has
  /// to say about them: of ranks with the same result one is the teller.
  bool is_teller() const { return layout.tp.rank() == 0 && layout.cp.rank() == 0; }
  /// From the last stage to all stages.
  template <typename T>
  std::vector<T> from_last_stage(std::vector<T> values) const;
};

struct StageOptions {
  std::optional<int64_t> first_layers, last_layers;  // of the first and the last stage
};

/// The groups of this rank in a mesh. Every rank of `everyone` makes them.
/// Errors: ConfigError when the stages have no layers to share (parallel/stages.h).
RankGroups make_rank_groups(const dist::Group& everyone, const dist::Mesh& mesh,
                            const ModelConfig& config, const StageOptions& options = {});

template <typename T>
std::vector<T> RankGroups::from_last_stage(std::vector<T> values) const {
  static_assert(std::is_trivially_copyable_v<T>);
  if (stages.size() == 1) return values;
  const std::string bytes = stages.broadcast(
      std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)),
      stages.size() - 1);
  values.resize(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace fathom
