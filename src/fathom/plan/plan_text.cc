// A plan as a table and as JSON.
#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "fathom/base/error.h"
#include "fathom/plan/plan.h"

namespace fathom {
namespace {

std::string format(const char* pattern, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(line, sizeof line, pattern, arguments);
  va_end(arguments);
  return line;
}

std::string gigabytes(int64_t bytes) {
  return format(bytes < 10'000'000'000 ? "%.3f" : "%.1f", static_cast<double>(bytes) / 1e9);
}

/// The fullest rank of a stage.
const RankMemory& fullest_of(const Plan& plan, int stage) {
  const RankMemory* found = nullptr;
  for (const RankMemory& m : plan.ranks) {
    if (m.stage == stage && (found == nullptr || m.peak_bytes() > found->peak_bytes())) found = &m;
  }
  FATHOM_ASSERT(found != nullptr, "stage ", stage, " has no rank");
  return *found;
}

std::string layout_line(const PlanRequest& r) {
  return str_cat(r.layout.mesh.text(), r.sequence_parallel ? " sequence-parallel" : "", ", ",
                 precision_name(r.layout.precision), ", ", r.num_ranks(),
                 r.num_ranks() == 1 ? " rank" : " ranks");
}

std::string memory_rows(const Plan& plan) {
  std::string text =
      "GB per rank (the fullest of each stage)\n"
      "stage  layers   params/1e9  weights  gradients  optimizer  saved act.  working  engine w.  "
      "states  training  rollout  host opt.\n";
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const RankMemory& m = fullest_of(plan, static_cast<int>(s));
    const LayerRange& l = plan.stages[s];
    text += format("%5zu  %3d..%-3d  %10.3f  %7s  %9s  %9s  %10s  %7s  %9s  %6s  %8s  %7s  %9s\n",
                   s, static_cast<int>(l.begin), static_cast<int>(l.end - 1),
                   static_cast<double>(m.num_parameters) / 1e9, gigabytes(m.weights).c_str(),
                   gigabytes(m.gradients).c_str(), gigabytes(m.optimizer).c_str(),
                   gigabytes(m.saved_activations).c_str(), gigabytes(m.working_activations).c_str(),
                   gigabytes(m.engine_weights).c_str(), gigabytes(m.states).c_str(),
                   gigabytes(m.training_bytes()).c_str(), gigabytes(m.rollout_bytes()).c_str(),
                   gigabytes(m.host_optimizer).c_str());
  }
  return text;
}

std::string traffic_rows(const Plan& plan) {
  std::string text = "GB that a rank sends per step, by kind (most of any stage)\n";
  for (int kind = 0; kind < kNumTrafficKinds; ++kind) {
    int64_t most = 0;
    for (const auto& stage : plan.traffic) most = std::max(most, stage[static_cast<size_t>(kind)]);
    if (most == 0) continue;
    text +=
        format("  %-20s %10s\n", traffic_name(static_cast<Traffic>(kind)), gigabytes(most).c_str());
  }
  return text;
}

std::string verdict(const PlanRequest& r, const Plan& plan) {
  const RankMemory& m = plan.fullest();
  std::string text =
      str_cat(plan.fits ? "fits" : "does not fit", ": rank ", m.rank, " takes ",
              gigabytes(m.peak_bytes()), " GB of ", gigabytes(r.machine.device_bytes), " GB");
  if (plan.max_host_bytes() > 0) {
    text += str_cat(", and ", gigabytes(plan.max_host_bytes()), " GB of ",
                    gigabytes(r.machine.host_bytes), " GB of the node's memory");
  }
  text += "\n";
  for (const Advice& a : plan.advice) {
    text += str_cat(
        "  with ", a.change, ": ", gigabytes(a.peak_bytes), " GB",
        a.host_bytes > 0 ? str_cat(" and ", gigabytes(a.host_bytes), " GB on the host") : "",
        a.fits ? ", fits\n" : ", does not fit\n");
  }
  return text;
}

Json rank_json(const RankMemory& m) {
  return {{"rank", m.rank},
          {"stage", m.stage},
          {"num_parameters", m.num_parameters},
          {"num_trained", m.num_trained},
          {"process_bytes", m.process},
          {"weight_bytes", m.weights},
          {"gradient_bytes", m.gradients},
          {"optimizer_bytes", m.optimizer},
          {"saved_activation_bytes", m.saved_activations},
          {"working_activation_bytes", m.working_activations},
          {"engine_weight_bytes", m.engine_weights},
          {"state_bytes", m.states},
          {"host_optimizer_bytes", m.host_optimizer},
          {"training_bytes", m.training_bytes()},
          {"rollout_bytes", m.rollout_bytes()},
          {"peak_bytes", m.peak_bytes()}};
}

}  // namespace

std::string plan_table(const PlanRequest& r, const Plan& plan) {
  const dist::MeshShape& mesh = r.layout.mesh;
  std::string text = str_cat(r.model_name, " on ", r.machine.name, ": ", layout_line(r), "\n");
  text += str_cat("a step: ", r.batch.samples, " samples of ", r.batch.sequence_tokens, " tokens, ",
                  r.num_micro_batches(), " micro-batches of ", r.batch.samples_per_micro_batch,
                  " on each of ", mesh.dp, " data-parallel ranks; ",
                  r.recompute ? "layers are recomputed" : "all activations are kept", "\n\n");
  text += memory_rows(plan) + "\n" + traffic_rows(plan);
  text += format(
      "\nrough time of a training step: %.1f s (computing %.1f, waiting for the pipeline %.1f, "
      "messages %.1f, optimizer transfers %.1f)\n",
      plan.step_seconds(), plan.compute_seconds, plan.bubble_seconds, plan.message_seconds,
      plan.optimizer_seconds);
  for (const std::string& line : plan.whole_products) {
    text += "computed whole on every rank: " + line + "\n";
  }
  return text + verdict(r, plan);
}

Json plan_json(const PlanRequest& r, const Plan& plan) {
  const dist::MeshShape& m = r.layout.mesh;
  Json out = {{"model", r.model_name},
              {"machine", r.machine.name},
              {"device_bytes", r.machine.device_bytes},
              {"host_bytes", r.machine.host_bytes},
              {"precision", precision_name(r.layout.precision)},
              {"layout",
               {{"tp", m.tp},
                {"cp", m.cp},
                {"dp", m.dp},
                {"pp", m.pp},
                {"ep", m.ep},
                {"etp", m.etp},
                {"expert_dp", m.expert_dp()},
                {"sequence_parallel", r.sequence_parallel},
                {"num_ranks", m.size()}}},
              {"num_micro_batches", r.num_micro_batches()},
              {"micro_batch_tokens", r.micro_batch_tokens()},
              {"fits", plan.fits},
              {"peak_bytes", plan.fullest().peak_bytes()},
              {"fullest_rank", plan.fullest().rank},
              {"whole_products", plan.whole_products},
              {"seconds",
               {{"compute", plan.compute_seconds},
                {"bubble", plan.bubble_seconds},
                {"messages", plan.message_seconds},
                {"optimizer", plan.optimizer_seconds},
                {"step", plan.step_seconds()}}}};
  out["stages"] = Json::array();
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    Json sent = Json::object();
    for (int kind = 0; kind < kNumTrafficKinds; ++kind) {
      sent[traffic_name(static_cast<Traffic>(kind))] = plan.traffic[s][static_cast<size_t>(kind)];
    }
    out["stages"].push_back({{"first_layer", plan.stages[s].begin},
                             {"end_layer", plan.stages[s].end},
                             {"bytes_sent_per_rank", sent}});
  }
  out["ranks"] = Json::array();
  for (const RankMemory& rank : plan.ranks) out["ranks"].push_back(rank_json(rank));
  out["advice"] = Json::array();
  for (const Advice& a : plan.advice) {
    out["advice"].push_back({{"change", a.change},
                             {"peak_bytes", a.peak_bytes},
                             {"host_bytes", a.host_bytes},
                             {"fits", a.fits}});
  }
  return out;
}

}  // namespace fathom
