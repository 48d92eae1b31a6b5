#include "fathom/train/replay_check.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/model/forward.h"
#include "fathom/parallel/pipeline.h"
#include "fathom/train/packing.h"

namespace fathom {
namespace {

std::string list_text(const std::vector<int32_t>& values) {
  std::string text = "[";
  for (const int32_t v : values) text += str_cat(text.size() > 1 ? " " : "", v);
  return text + "]";
}

/// Rows of one kind in one layer.
struct Rows {
  const std::vector<int32_t>* rollout;
  const std::vector<int32_t>* trainer;
  int64_t num_layers, width, layer;  // among those that have rows
  std::vector<int32_t> row(const std::vector<int32_t>& rows, int64_t token) const {
    const auto at = rows.begin() + (token * num_layers + layer) * width;
    return {at, at + width};
  }
};

/// Each stage has recorded its layers' rows, and has -1 in the others'.
void merge_stages(const dist::Group& stages, ReplayRecord* record) {
  if (stages.size() == 1) return;
  for (std::vector<int32_t>* rows : {&record->routes, &record->picks}) {
    std::vector<int32_t> merged;
    for (const std::string& bytes : stages.all_gather(std::string_view(
             reinterpret_cast<const char*>(rows->data()), rows->size() * sizeof(int32_t)))) {
      std::vector<int32_t> of_stage(bytes.size() / sizeof(int32_t));
      if (!bytes.empty()) std::memcpy(of_stage.data(), bytes.data(), bytes.size());
      if (merged.size() < of_stage.size()) merged.resize(of_stage.size(), -1);
      for (size_t i = 0; i < of_stage.size(); ++i) merged[i] = std::max(merged[i], of_stage[i]);
    }
    *rows = std::move(merged);
  }
}

}  // namespace

std::string ReplayDifference::text() const {
  const std::string place = str_cat("sample ", sample, ": layer ", layer, ", token ", token, ": ");
  return in_picks ? str_cat(place, "rollout picked the entries ", list_text(rollout),
                            ", the trainer ", list_text(trainer))
                  : str_cat(place, "rollout routed to ", list_text(rollout), ", the trainer to ",
                            list_text(trainer));
}

ReplayCheck compare_replay(const ModelConfig& config, const ReplayRecord& rollout,
                           const ReplayRecord& trainer, int64_t sample_index) {
  FATHOM_ASSERT(rollout.num_layers == trainer.num_layers &&
                    rollout.num_slots == trainer.num_slots &&
                    rollout.num_indexer_layers == trainer.num_indexer_layers &&
                    rollout.index_topk == trainer.index_topk &&
                    rollout.num_layers == config.num_hidden_layers,
                "records of different models");
  ReplayCheck check;
  const int64_t width = std::max<int64_t>(1, rollout.num_layers * rollout.num_slots);
  check.num_tokens =
      static_cast<int64_t>(std::min(rollout.routes.size(), trainer.routes.size())) / width;
  std::vector<bool> wrong_routes(static_cast<size_t>(check.num_tokens));
  std::vector<bool> wrong_picks = wrong_routes;
  const auto compare = [&](const Rows& rows, int64_t layer, bool in_picks) {
    for (int64_t t = 0; t < check.num_tokens; ++t) {
      const std::vector<int32_t> a = rows.row(*rows.rollout, t), b = rows.row(*rows.trainer, t);
      if (a == b) continue;
      (in_picks ? wrong_picks : wrong_routes)[static_cast<size_t>(t)] = true;
      if (!check.first) check.first = ReplayDifference{sample_index, layer, t, in_picks, a, b};
    }
  };
  int64_t indexer_layer = 0;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    if (config.ratio(l) == 4 && rollout.index_topk > 0) {
      compare({&rollout.picks, &trainer.picks, rollout.num_indexer_layers, rollout.index_topk,
               indexer_layer++},
              l, /*in_picks=*/true);
    }
    compare({&rollout.routes, &trainer.routes, rollout.num_layers, rollout.num_slots, l}, l,
            /*in_picks=*/false);
  }
  check.num_route_mismatches = std::count(wrong_routes.begin(), wrong_routes.end(), true);
  check.num_pick_mismatches = std::count(wrong_picks.begin(), wrong_picks.end(), true);
  return check;
}

ReplayCheck check_replay(const ExecContext& ctx, const Weights& weights,
                         const std::vector<const Sample*>& samples, int64_t max_tokens,
                         const RankGroups& groups) {
  std::vector<const Sample*> recorded;
  std::vector<int64_t> lengths;
  for (const Sample* s : samples) {
    if (s->replay.routes.empty()) continue;
    const int64_t length = static_cast<int64_t>(s->tokens.size());
    const ReplayRecord& r = s->replay;
    const auto covers = [&](const std::vector<int32_t>& rows, int64_t width) {
      return static_cast<int64_t>(rows.size()) == (length - 1) * width;
    };
    FATHOM_CHECK(covers(r.routes, r.num_layers * r.num_slots) &&
                     covers(r.picks, r.num_indexer_layers * r.index_topk),
                 "sample ", s->index, ": its record of routes and picks does not cover its ",
                 length, " tokens but the last");
    recorded.push_back(s);
    lengths.push_back(length);
  }
  ReplayCheck total;
  const std::vector<int64_t> borders = cut_micro_batches(lengths, max_tokens);
  for (size_t b = 0; b + 1 < borders.size(); ++b) {
    const size_t begin = static_cast<size_t>(borders[b]), end = static_cast<size_t>(borders[b + 1]);
    std::vector<PackedSequence> sequences;
    std::vector<ReplayRecord> records;
    for (size_t i = begin; i < end; ++i) {
      sequences.push_back({&recorded[i]->tokens, recorded[i]->prompt_length()});
      records.push_back(recorded[i]->replay);
      records.back().routes.clear();
      records.back().picks.clear();
    }
    PackedBatch packed = pack_sequences(sequences);
    for (size_t i = 0; i < records.size(); ++i) packed.batch.segments[i].replay_out = &records[i];
    run_forward(ctx, weights, groups.stages,
                {.num_micro_batches = 1,
                 .batch = [&](int) -> const Batch& { return packed.batch; },
                 .head = [](int, const Tensor&) { return Tensor(); }});
    for (ReplayRecord& record : records) merge_stages(groups.stages, &record);
    for (size_t i = 0; i < records.size(); ++i) {
      const Sample& sample = *recorded[begin + i];
      const ReplayCheck one =
          compare_replay(weights.config, sample.replay, records[i], sample.index);
      total.num_tokens += one.num_tokens;
      total.num_route_mismatches += one.num_route_mismatches;
      total.num_pick_mismatches += one.num_pick_mismatches;
      if (!total.first) total.first = one.first;
    }
  }
  return total;
}

}  // namespace fathom
