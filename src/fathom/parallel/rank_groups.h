// The groups of one rank: who computes with it, and who has the same parameters.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "fathom/dist/group.h"
#include "fathom/dist/mesh.h"
#include "fathom/model/config.h"
#include "fathom/model/layout.h"
#include "fathom/model/parameter.h"

namespace fathom {

struct RankGroups {
  dist::MeshShape shape;
  dist::Group everyone;
  dist::Group dp;         // share the samples
  dist::Group dp_cp;      // have the same parts of the dense parameters
  dist::Group expert_dp;  // have the same parts of the same experts
  // Engines on the trainer's shards: the ranks of a tp and of an ep run one engine, all with the
  // same requests in step. One rank of each engine, this one among them: they share the requests.
  dist::Group engines;
  dist::Group stages;  // share the layers, in order
  Layout layout;       // for make_weights()

  RankGroups() = default;  // one rank
  /// Ranks that have the whole model each and share the samples.
  RankGroups(dist::Group all);
  /// @param all of `shape.size()` ranks. With several stages set_stages() follows.
  RankGroups(const dist::Group& all, const dist::MeshShape& shape, bool sequence_parallel,
             int64_t part_multiple);

  /// Whether this rank has every parameter whole.
  bool has_whole_model() const {
    return shape.tp == 1 && shape.ep == 1 && shape.etp == 1 && shape.pp == 1;
  }
  /// The layout in which an engine reads the trainer's weights: its forwards have states, so rows
  /// are shared neither over cp nor by sequence parallelism.
  Layout engine_layout() const;
  /// Which layers this rank's stage has. @param first, last how many the first and the last one
  /// have. Errors: ConfigError when a stage would have none (parallel/stages.h).
  void set_stages(const ModelConfig& config, std::optional<int64_t> first = std::nullopt,
                  std::optional<int64_t> last = std::nullopt);
  /// What the last stage has, on all stages.
  template <typename T>
  std::vector<T> from_last_stage(std::vector<T> values) const;

  /// Those that have the same part of the parameter and sum its gradient.
  const dist::Group& replicas(const Parameter& p) const;
  /// Whether this rank stands for its part where each is counted once: in norms and in checkpoints.
  bool is_first_replica(const Parameter& p) const;
  /// Whether ranks that share the samples hold experts for each other: they then have to enter
  /// equally many forwards, with an empty batch where one has nothing left.
  bool shares_experts_over_dp() const { return shape.ep * shape.etp > shape.tp * shape.cp; }
};

bool is_routed_expert(const Parameter& p);

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
