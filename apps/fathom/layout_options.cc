#include "layout_options.h"

#include "fathom/base/precision.h"
#include "fathom/config/derived.h"

namespace fathom {

RankGroups rank_groups(const dist::Group& ranks, const config::Options& options,
                       const ModelConfig& model) {
  const config::ParallelOptions& o = options.parallel;
  const config::Derived derived = config::derive(options);
  const bool has_fp8_blocks = derived.train_precision == Precision::kParityFp8 ||
                              derived.rollout_precision == Precision::kParityFp8;
  dist::MeshShape shape;
  shape.tp = static_cast<int>(o.tensor_model_parallel_size);
  shape.cp = static_cast<int>(o.context_parallel_size);
  shape.ep = static_cast<int>(o.expert_model_parallel_size);
  shape.etp = static_cast<int>(o.expert_tensor_parallel_size);
  shape.pp = static_cast<int>(o.pipeline_model_parallel_size);
  RankGroups groups(ranks, shape, o.sequence_parallel, has_fp8_blocks ? 128 : 16);
  if (shape.pp > 1) {
    groups.set_stages(model, o.decoder_first_pipeline_num_layers,
                      o.decoder_last_pipeline_num_layers);
  }
  return groups;
}

}  // namespace fathom
