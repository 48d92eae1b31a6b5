#include "conversion.h"

#include <cstdio>

#include "fathom/base/hash.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/prepare_spmd.h"

namespace fathom {
namespace {

ModelTensors open_source(const std::string& from) {
  ModelTensors source(from, /*with_mtp=*/true, ScaleCheck::kFp4WhenDecoded);
  for (const std::string& note : source.notes()) log_info("note: ", note);
  return source;
}

ParallelLayout layout_of(const config::ParallelOptions& o) {
  ParallelLayout layout;
  layout.tensor = o.tensor_model_parallel_size;
  layout.pipeline = o.pipeline_model_parallel_size;
  layout.expert = o.expert_model_parallel_size;
  layout.expert_tensor = o.expert_tensor_parallel_size;
  layout.first_layers = o.decoder_first_pipeline_num_layers;
  layout.last_layers = o.decoder_last_pipeline_num_layers;
  layout.vocab_multiple = o.make_vocab_size_divisible_by;
  return layout;
}

// One node with the 4-layer model, eight with Flash, thirty-two with Pro.
std::vector<ParallelLayout> recipe_layouts() {
  ParallelLayout flash{.tensor = 1, .pipeline = 8, .expert = 4};
  ParallelLayout pro{.tensor = 8, .pipeline = 8, .expert = 32};
  for (ParallelLayout* layout : {&flash, &pro}) {
    layout->first_layers = 7;
    layout->last_layers = 6;
  }
  pro.vocab_multiple = 32;
  return {ParallelLayout{}, flash, pro};
}

}  // namespace

void convert_to_torch_dist(const ExecContext& ctx, const config::Options& options,
                           const dist::RankEnvironment& process, const std::string& from,
                           const std::string& to) {
  PrepareSpmdOptions o;
  o.plan.layout = layout_of(options.parallel);
  // The secret tells jobs apart as well; written down it would be none.
  o.place = {process.rank, process.size,
             sha256_hex(str_cat(process.secret, " ", process.master_port)).substr(0, 16)};
  prepare_spmd(ctx, open_source(from), to, o);
}

void print_conversion_plans(const config::Options& options, bool is_layout_given,
                            const std::string& from) {
  const ModelTensors source = open_source(from);
  std::printf(
      "%s: %zu tensors, %lld bytes in %zu files\n", from.c_str(), source.shards().tensors().size(),
      static_cast<long long>(source.shards().total_bytes()), source.shards().files().size());
  const std::vector<ParallelLayout> layouts =
      is_layout_given ? std::vector{layout_of(options.parallel)} : recipe_layouts();
  for (const ParallelLayout& layout : layouts) {
    std::fputs("\n", stdout);
    const std::string problem = layout_problem(layout, source.config());
    if (!problem.empty() && !is_layout_given) {
      std::printf("%s: does not fit this model: %s\n", layout.to_string().c_str(), problem.c_str());
      continue;
    }
    const SpmdPlan plan = make_spmd_plan(source, {.layout = layout});
    std::fputs(describe_spmd_plan(plan, layout).c_str(), stdout);
  }
}

}  // namespace fathom
