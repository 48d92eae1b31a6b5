#include "fathom/plan/memory.h"

#include <algorithm>
#include <numeric>

#include "fathom/model/sequence_state.h"
#include "fathom/parallel/pipeline_schedule.h"

namespace fathom {
namespace {

using dist::Axis;

/// Bytes of one element in the form that kernels read.
double compute_bytes(const Parameter& p, Precision precision) {
  if (p.kind == ParameterKind::kTable) return 4;
  if (precision == Precision::kFp32 || p.export_dtype == DType::kF32) return 4;
  if (precision == Precision::kParityFp8 && p.is_fp8_weight) return 1 + 4.0 / (128 * 128);
  return 2;
}

int64_t weight_bytes(const PlanRequest& r, const HeldParameter& h) {
  const Parameter& p = *h.parameter;
  if (!r.machine.is_cpu) {
    return static_cast<int64_t>(static_cast<double>(h.numel) *
                                compute_bytes(p, r.layout.precision));
  }
  const bool is_rounded = r.layout.precision != Precision::kFp32 &&
                          p.kind != ParameterKind::kTable && p.export_dtype == DType::kBF16;
  return h.stored * (is_rounded ? 8 : 4);
}

/// Of the element's owner. On a CPU, and in fp32, the master is what kernels read.
int64_t optimizer_bytes(const PlanRequest& r, const HeldParameter& h) {
  const bool has_own_master = !r.machine.is_cpu && r.layout.precision != Precision::kFp32 &&
                              h.parameter->export_dtype == DType::kBF16;
  return h.stored * (2 * r.moment_bytes + (has_own_master ? 4 : 0));
}

void add_parameters(const PlanRequest& r, const ShardTable& table, int rank, RankMemory* m) {
  const dist::Mesh& mesh = table.mesh();
  const dist::MeshShape& shape = r.layout.mesh;
  Dealer dense(shape.dp * shape.cp), experts(shape.expert_dp());
  int64_t optimizer = 0;
  for (const HeldParameter& h : table.of_rank(rank)) {
    m->num_parameters += h.numel;
    m->weights += weight_bytes(r, h);
    if (!h.is_trained) continue;
    m->num_trained += h.numel;
    m->gradients += h.stored * r.gradient_bytes;
    const int owner = (h.is_expert ? experts : dense).next(h.parameter->numel());
    if (owner == mesh.index(rank, h.is_expert ? Axis::kExpertDp : Axis::kDpCp)) {
      optimizer += optimizer_bytes(r, h);
    }
  }
  (r.optimizer_on_host && !r.machine.is_cpu ? m->host_optimizer : m->optimizer) = optimizer;
}

/// Sizes of one layer's tensors on a rank, in elements.
struct LayerSizes {
  int64_t streams = 0;   // [T, M, D]
  int64_t kept = 0;      // made by the forward, needed by the backward
  int64_t backward = 0;  // the most that the backward takes beside it
};

LayerSizes layer_sizes(const PlanRequest& r, int64_t ratio) {
  const ModelConfig& c = r.config;
  const dist::MeshShape& mesh = r.layout.mesh;
  const auto share = [](int64_t n, int64_t parts) { return (n + parts - 1) / parts; };
  const auto is_split = [&](const char* name) {
    const Split s = split_of(c, r.layout, name);
    return s != Split::kWhole && s != Split::kExpert;
  };
  const int64_t D = c.hidden_size, M = c.hc_mult, hd = c.head_dim, K = c.num_experts_per_tok;
  const int64_t all = r.micro_batch_tokens(), Tc = share(all, mesh.cp), slice = share(Tc, mesh.tp);
  const int64_t T = r.sequence_parallel ? slice : Tc;
  const int64_t heads = c.num_attention_heads / mesh.tp, q = Tc * heads * hd;
  const int64_t z =
      Tc * c.o_groups * c.o_lora_rank / (is_split("layers.0.attn.wo_b.weight") ? mesh.tp : 1);
  const int64_t I = c.moe_intermediate_size;
  const int64_t routed_I = I / (is_split("layers.0.ffn.experts.0.w2.weight") ? mesh.etp : 1);
  const int64_t shared_I = I / (is_split("layers.0.ffn.shared_experts.w2.weight") ? mesh.tp : 1);
  const int64_t rows = (mesh.ep > 1 ? slice : T) * K;  // routed, when experts are hit evenly
  const int64_t entries = ratio > 0 ? all / ratio : 0, coff = compressor_coff(ratio);
  const int64_t pooled = ratio > 0 ? 2 * Tc * coff * hd + 2 * entries * hd : 0;
  const int64_t mixed = T * (D + M + M * M);

  LayerSizes s;
  s.streams = T * M * D;
  const int64_t attention = Tc * 2 * c.q_lora_rank + 4 * q + Tc * hd + all * hd + Tc * heads + z +
                            pooled + (ratio == 4 ? Tc * (c.index_topk + 1) : 0);
  const int64_t experts =
      T * c.n_routed_experts + 3 * T * K + 2 * rows * D + 3 * rows * routed_I + 3 * Tc * shared_I;
  s.kept = 2 * mixed + Tc * D + T * D /* inputs */ + attention + T * D + s.streams /* middle */ +
           experts + T * D;
  const int64_t moe_backward = s.streams + 2 * T * D + rows * D + 3 * rows * routed_I +
                               3 * Tc * shared_I + T * c.n_routed_experts;
  const int64_t attention_backward =
      2 * s.streams + T * D + z + 3 * q + 2 * Tc * c.q_lora_rank + 2 * all * hd + Tc * D + pooled;
  s.backward = std::max(moe_backward, attention_backward);
  return s;
}

}  // namespace

ActivationBytes activation_bytes(const PlanRequest& r, const LayerRange& layers, bool has_head) {
  const int64_t a = r.activation_bytes();
  LayerSizes largest;
  int64_t saved = 0, streams = 0;
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    const LayerSizes s = layer_sizes(r, r.config.ratio(l));
    streams = s.streams;
    saved += s.streams + (r.recompute ? 0 : s.kept);
    if (s.kept + s.backward > largest.kept + largest.backward) largest = s;
  }
  ActivationBytes out;
  out.saved = saved * a;
  int64_t working = streams + largest.backward + (r.recompute ? largest.kept : 0);
  if (has_head) {
    // The last streams and their gradient, the streams of the head's rows and theirs, hidden rows.
    const int64_t rows = (r.micro_batch_rows() + r.layout.mesh.cp - 1) / r.layout.mesh.cp;
    const int64_t D = r.config.hidden_size;
    working = std::max(working, 2 * streams + 2 * rows * r.config.hc_mult * D + 4 * rows * D);
  }
  out.working = working * a;
  return out;
}

int64_t state_bytes(const PlanRequest& r) {
  int64_t page = r.engine.page_size;
  if (page == 0) {
    page = 16;
    for (int64_t ratio : r.config.compress_ratios) {
      if (ratio > 0) page = std::lcm(page, ratio);
    }
  }
  const StateLayout layout(r.config, page, r.layout.with_mtp, r.layout.precision);
  const int64_t ranks = r.engine.dp_attention ? std::max(1, r.engine.dp) : 1;
  const int64_t sequences = (r.engine.max_running_requests + ranks - 1) / ranks;
  return sequences * (layout.fixed_bytes() + layout.history_bytes(r.batch.sequence_tokens));
}

int64_t engine_weight_bytes(const PlanRequest& r) {
  if (r.engine.shares_layout) return 0;
  PlanRequest engine = r;
  const int tp = r.engine.dp_attention ? 1 : r.engine.tp;
  const int ranks = std::max({tp, r.engine.tp, r.engine.ep});
  engine.layout = {.mesh = {.tp = tp, .dp = ranks / tp, .ep = r.engine.ep},
                   .precision = r.layout.precision,
                   .with_mtp = r.layout.with_mtp};
  const ShardTable table(engine);
  int64_t bytes = 0;
  for (const HeldParameter& h : table.of_rank(0)) bytes += weight_bytes(engine, h);
  return bytes;
}

RankMemory rank_memory(const PlanRequest& r, const ShardTable& table, int rank) {
  RankMemory m;
  m.rank = rank;
  m.stage = table.mesh().index(rank, Axis::kPp);
  m.process = r.machine.process_bytes;
  add_parameters(r, table, rank, &m);
  const int pp = r.layout.mesh.pp;
  const ActivationBytes a =
      activation_bytes(r, table.stages()[static_cast<size_t>(m.stage)], m.stage == pp - 1);
  m.saved_activations =
      a.saved * max_in_flight(one_forward_one_backward(pp, m.stage, r.num_micro_batches()));
  m.working_activations = a.working;
  return m;
}

int64_t RankMemory::training_bytes() const {
  return process + weights + gradients + optimizer + saved_activations + working_activations;
}

int64_t RankMemory::rollout_bytes() const {
  return process + weights + optimizer + engine_weights + states;
}

int64_t RankMemory::peak_bytes() const { return std::max(training_bytes(), rollout_bytes()); }

}  // namespace fathom
