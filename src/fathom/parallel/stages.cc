#include "fathom/parallel/stages.h"

#include "fathom/base/error.h"

namespace fathom {
namespace {

std::string told(const std::optional<int64_t>& layers) {
  return layers ? str_cat(*layers) : "not given";
}

}  // namespace

std::vector<LayerRange> stage_layers(const ModelConfig& config, int pp,
                                     std::optional<int64_t> first, std::optional<int64_t> last) {
  const int64_t total = config.num_hidden_layers;
  FATHOM_ASSERT(pp >= 1, "pipeline of ", pp);
  if (pp == 1) {
    if (first || last) {
      throw ConfigError(
          "--decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers need a "
          "pipeline of several stages, got --pipeline-model-parallel-size 1\n  fix: leave them "
          "out");
    }
    return {{0, total}};
  }
  const int64_t even_stages = pp - (first ? 1 : 0) - (last ? 1 : 0);
  const int64_t even_layers = total - first.value_or(0) - last.value_or(0);
  const bool all_work = first.value_or(1) > 0 && last.value_or(1) > 0 &&
                        even_layers >= even_stages && (even_stages > 0 || even_layers == 0);
  if (!all_work) {
    throw ConfigError(str_cat("--pipeline-model-parallel-size ", pp, " does not fit the ", total,
                              " layers of the model\n  got: --decoder-first-pipeline-num-layers ",
                              told(first), ", --decoder-last-pipeline-num-layers ", told(last),
                              "; they leave ", even_layers, " layers to ", even_stages,
                              " stages\n  fix: give every stage at least one layer"));
  }
  std::vector<LayerRange> stages;
  int64_t at = 0, even = 0;
  for (int stage = 0; stage < pp; ++stage) {
    int64_t n = 0;
    if (stage == 0 && first) {
      n = *first;
    } else if (stage == pp - 1 && last) {
      n = *last;
    } else {
      n = even_layers / even_stages + (even < even_layers % even_stages ? 1 : 0);
      ++even;
    }
    stages.push_back({at, at + n});
    at += n;
  }
  return stages;
}

}  // namespace fathom
