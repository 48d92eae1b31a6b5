#include "fathom/plan/plan.h"

#include <algorithm>
#include <functional>

#include "fathom/base/error.h"
#include "fathom/plan/step_traffic.h"

namespace fathom {
namespace {

// Shares of the nominal rates that large products and large messages reach.
constexpr double kProductEfficiency = 0.4, kMessageEfficiency = 0.7;

/// Multiply-adds of one token's forward through what a rank of the stage computes, times 2.
double forward_flops(const PlanRequest& r, const LayerRange& layers, bool has_head) {
  const ModelConfig& c = r.config;
  const double tp = r.layout.mesh.tp, D = static_cast<double>(c.hidden_size);
  const double Rq = static_cast<double>(c.q_lora_rank), hd = static_cast<double>(c.head_dim);
  const double H = static_cast<double>(c.num_attention_heads);
  const double Go = static_cast<double>(c.o_groups * c.o_lora_rank);
  const double expert = 3.0 * D * static_cast<double>(c.moe_intermediate_size);
  double products = 0;
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    const int64_t ratio = c.ratio(l);
    const double keys =
        static_cast<double>(c.sliding_window) +
        (ratio == 0 ? 0.0
         : ratio == 4
             ? static_cast<double>(std::min(c.index_topk, r.batch.sequence_tokens / (2 * ratio)))
             : static_cast<double>(r.batch.sequence_tokens) / static_cast<double>(2 * ratio));
    products += D * (Rq + hd) + H * hd * Rq / tp +
                H * hd * Go / static_cast<double>(c.o_groups) / tp + D * Go / tp;
    products += 2.0 * H * hd * keys / tp;
    if (ratio > 0) products += 2.0 * static_cast<double>(compressor_coff(ratio)) * hd * D;
    if (ratio == 4) {
      const double Hi = static_cast<double>(c.index_n_heads * c.index_head_dim);
      products += Hi * Rq + Hi * static_cast<double>(r.batch.sequence_tokens) / 8.0;
    }
    const double routed = static_cast<double>(c.num_experts_per_tok) * expert;
    products += D * static_cast<double>(c.n_routed_experts) / tp + (routed + expert) / tp;
  }
  if (has_head) {
    products += D * static_cast<double>(c.vocab_size) / tp *
                static_cast<double>(r.batch.response_tokens) /
                static_cast<double>(r.batch.sequence_tokens);
  }
  return 2.0 * products;
}

double bandwidth(const PlanRequest& r, dist::Axis axis) {
  const dist::MeshShape& s = r.layout.mesh;
  int span = 1;  // ranks between the first and the last of a group
  switch (axis) {
    case dist::Axis::kTp:
      span = s.tp;
      break;
    case dist::Axis::kCp:
      span = s.tp * s.cp;
      break;
    case dist::Axis::kEtp:
      span = s.etp;
      break;
    case dist::Axis::kEp:
      span = s.ep * s.etp;
      break;
    case dist::Axis::kDp:
    case dist::Axis::kDpCp:
    case dist::Axis::kExpertDp:
      span = s.tp * s.cp * s.dp;
      break;
    case dist::Axis::kPp:
      span = s.size();
      break;
  }
  return kMessageEfficiency *
         (span <= r.ranks_per_node ? r.machine.node_bandwidth : r.machine.network_bandwidth);
}

void add_time(const PlanRequest& r, const ShardTable& table, Plan* plan) {
  const int n = r.num_micro_batches(), pp = r.layout.mesh.pp;
  const double tokens = static_cast<double>(r.micro_batch_tokens()) / r.layout.mesh.cp;
  const double rate =
      kProductEfficiency *
      (r.layout.precision == Precision::kParityFp8 ? r.machine.fp8_flops : r.machine.bf16_flops);
  const double passes = r.recompute ? 4.0 : 3.0;  // forward, twice it backward, once more
  double slowest = 0;
  for (int stage = 0; stage < pp; ++stage) {
    const double flops =
        forward_flops(r, plan->stages[static_cast<size_t>(stage)], stage == pp - 1) * tokens;
    slowest = std::max(slowest, passes * flops / rate);
    double messages = 0;
    for (const auto& [op, times] : step_ops(r, table, first_rank_of_stage(r, stage))) {
      messages +=
          static_cast<double>(op.num_bytes) * static_cast<double>(times) / bandwidth(r, op.axis);
    }
    plan->message_seconds = std::max(plan->message_seconds, messages);
  }
  plan->compute_seconds = slowest * n;
  plan->bubble_seconds = slowest * (pp - 1);
  int64_t host = 0, trained = 0;
  for (const RankMemory& m : plan->ranks) {
    host = std::max(host, m.host_optimizer);
    trained = std::max(trained, m.num_trained);
  }
  // Gradients go to the host, moved weights come back; Adam itself is hidden behind that.
  if (host > 0) {
    plan->optimizer_seconds = static_cast<double>(trained) * 6.0 / r.machine.host_bandwidth;
  }
}

bool all_fit(const PlanRequest& r, const Plan& plan) {
  return plan.fullest().peak_bytes() <= r.machine.device_bytes &&
         plan.max_host_bytes() <= std::max<int64_t>(0, r.machine.host_bytes);
}

Plan memory_plan(const PlanRequest& request, const ShardTable& table) {
  Plan plan;
  plan.stages = table.stages();
  plan.whole_products = whole_products(request.config, request.layout);
  const int64_t states = state_bytes(request), engine = engine_weight_bytes(request);
  for (int rank = 0; rank < request.num_ranks(); ++rank) {
    plan.ranks.push_back(rank_memory(request, table, rank));
    plan.ranks.back().states = states;
    plan.ranks.back().engine_weights = engine;
  }
  plan.fits = all_fit(request, plan);
  return plan;
}

/// Tries each change alone, the cheapest first.
std::vector<Advice> find_advice(const PlanRequest& request) {
  std::vector<Advice> advice;
  const auto attempt = [&](const std::string& change,
                           const std::function<void(PlanRequest&)>& make) {
    PlanRequest changed = request;
    make(changed);
    try {
      const Plan plan = memory_plan(changed, ShardTable(changed));
      const int64_t peak = plan.fullest().peak_bytes();
      advice.push_back({change, peak, plan.max_host_bytes(), plan.fits});
    } catch (const ConfigError&) {
      // A layout that the model does not allow is no advice.
    }
  };
  const dist::MeshShape& mesh = request.layout.mesh;
  const bool is_gpu = !request.machine.is_cpu;
  if (mesh.tp > 1 && !request.sequence_parallel) {
    attempt("--sequence-parallel", [](PlanRequest& r) { r.sequence_parallel = true; });
  }
  if (!request.recompute) {
    attempt("--recompute-granularity full", [](PlanRequest& r) { r.recompute = true; });
  }
  if (request.batch.samples_per_micro_batch > 1) {
    attempt("--micro-batch-size 1", [](PlanRequest& r) { r.batch.samples_per_micro_batch = 1; });
  }
  if (is_gpu && !request.optimizer_on_host) {
    attempt("--optimizer-cpu-offload", [](PlanRequest& r) { r.optimizer_on_host = true; });
  }
  if (request.moment_bytes == 4) {
    attempt("--bf16-moments", [](PlanRequest& r) { r.moment_bytes = 2; });
  }
  if (request.gradient_bytes == 4) {
    attempt("--bf16-gradients", [](PlanRequest& r) { r.gradient_bytes = 2; });
  }
  if (request.engine.max_running_requests > 8) {
    attempt("--sglang-max-running-requests 8",
            [](PlanRequest& r) { r.engine.max_running_requests = 8; });
  }
  if (!request.engine.shares_layout) {
    attempt(str_cat("an engine of ", 2 * request.engine.ep, " ranks"), [](PlanRequest& r) {
      r.engine.tp *= 2;
      r.engine.dp *= 2;
      r.engine.ep *= 2;
    });
  }
  attempt(str_cat("twice as many ranks: --pipeline-model-parallel-size ", 2 * mesh.pp),
          [](PlanRequest& r) {
            r.layout.mesh.pp *= 2;
            r.layout.first_stage_layers = r.layout.last_stage_layers = std::nullopt;
          });
  attempt(str_cat("twice as many ranks: data parallel ", 2 * mesh.dp,
                  ", --expert-model-parallel-size ", 2 * mesh.ep),
          [](PlanRequest& r) {
            r.layout.mesh.dp *= 2;
            r.layout.mesh.ep *= 2;
          });
  attempt(str_cat("twice as many ranks: --context-parallel-size ", 2 * mesh.cp),
          [](PlanRequest& r) { r.layout.mesh.cp *= 2; });
  return advice;
}

}  // namespace

const RankMemory& Plan::fullest() const {
  return *std::max_element(ranks.begin(), ranks.end(), [](const auto& a, const auto& b) {
    return a.peak_bytes() < b.peak_bytes();
  });
}

int64_t Plan::max_host_bytes() const {
  int64_t most = 0;
  for (const RankMemory& m : ranks) most = std::max(most, m.host_optimizer);
  return most;
}

double Plan::step_seconds() const {
  return compute_seconds + bubble_seconds + message_seconds + optimizer_seconds;
}

Plan make_plan(const PlanRequest& request) {
  const ShardTable table(request);
  Plan plan = memory_plan(request, table);
  for (int stage = 0; stage < request.layout.mesh.pp; ++stage) {
    std::vector<int64_t> bytes(kNumTrafficKinds);
    for (const auto& [op, times] : step_ops(request, table, first_rank_of_stage(request, stage))) {
      bytes[static_cast<size_t>(op.kind)] += op.num_bytes * times;
    }
    plan.traffic.push_back(std::move(bytes));
  }
  add_time(request, table, &plan);
  if (!plan.fits) plan.advice = find_advice(request);
  return plan;
}

}  // namespace fathom
