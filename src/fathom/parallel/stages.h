// Which layers a pipeline stage computes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "fathom/model/config.h"

namespace fathom {

struct LayerRange {
  int64_t begin = 0, end = 0;  // main layers, half-open
  int64_t size() const { return end - begin; }
  bool contains(int64_t layer) const { return begin <= layer && layer < end; }
};

/// The main layers of each of `pp` stages, consecutive and in order. The first and the last stage
/// have as many as is said; the others share what remains evenly, earlier ones one more where it
/// does not come out even. The embedding belongs to the first stage; final norm, hc_head, head and
/// MTP modules to the last.
/// Errors: ConfigError when a stage would have no layer, or first or last is given for one stage.
std::vector<LayerRange> stage_layers(const ModelConfig& config, int pp,
                                     std::optional<int64_t> first = std::nullopt,
                                     std::optional<int64_t> last = std::nullopt);

}  // namespace fathom
