#include "fathom/model/weights.h"

#include <algorithm>
#include <initializer_list>
#include <map>

#include "fathom/base/error.h"
#include "fathom/model/shard.h"

namespace fathom {
namespace {

/// Cuts an axis into as many equal parts as the group has members.
void cut_evenly(const Layout& layout, ShardGroup group, int axis, Parameter* p) {
  const dist::Group& members = members_of(layout, group);
  const int64_t n = p->shape[static_cast<size_t>(axis)] / members.size();
  p->cut(group, axis, n * members.rank(), n);
}

/// Parameters that meet only a rank's own rows: the members of tp have the gradients of different
/// ones.
void sum_over_tp(std::initializer_list<Parameter*> parameters) {
  for (Parameter* p : parameters) p->gradient_group = ShardGroup::kTp;
}

bool splits_streams(const Layout& layout) {
  return layout.sequence_parallel && layout.tp.size() > 1;
}

void sum_over_tp(HyperConnectionWeights* hc) { sum_over_tp({&hc->fn, &hc->base, &hc->scale}); }

HyperConnectionWeights make_hyper_connection(const std::string& prefix, int64_t mixes,
                                             int64_t width, int64_t num_scales) {
  HyperConnectionWeights hc;
  hc.fn = make_matrix(prefix + "_fn", mixes, width);
  hc.fn.export_dtype = DType::kF32;
  hc.base = make_plain(prefix + "_base", {mixes}, DType::kF32);
  hc.scale = make_plain(prefix + "_scale", {num_scales}, DType::kF32);
  return hc;
}

CompressorWeights make_compressor(const std::string& prefix, int64_t ratio, int64_t width,
                                  int64_t hidden) {
  CompressorWeights c;
  c.ratio = ratio;
  c.coff = compressor_coff(ratio);
  c.width = width;
  c.wkv = make_matrix(prefix + ".wkv.weight", c.coff * width, hidden);
  c.wgate = make_matrix(prefix + ".wgate.weight", c.coff * width, hidden);
  c.ape = make_plain(prefix + ".ape", {ratio, c.coff * width}, DType::kF32);
  c.norm = make_plain(prefix + ".norm.weight", {width}, DType::kBF16);
  return c;
}

/// Marks what FP8 checkpoints and parity-fp8 keep in FP8 blocks.
void mark_fp8(std::initializer_list<Parameter*> parameters) {
  for (Parameter* p : parameters) p->is_fp8_weight = true;
}

AttentionWeights make_attention(const ModelConfig& c, const std::string& prefix, int64_t ratio,
                                const Layout& layout) {
  const int64_t H = c.num_attention_heads, hd = c.head_dim, D = c.hidden_size;
  AttentionWeights a;
  a.ratio = ratio;
  a.wq_a = make_matrix(prefix + ".wq_a.weight", c.q_lora_rank, D);
  a.q_norm = make_plain(prefix + ".q_norm.weight", {c.q_lora_rank}, DType::kBF16);
  a.wq_b = make_matrix(prefix + ".wq_b.weight", H * hd, c.q_lora_rank);
  a.wkv = make_matrix(prefix + ".wkv.weight", hd, D);
  a.kv_norm = make_plain(prefix + ".kv_norm.weight", {hd}, DType::kBF16);
  a.wo_a = make_matrix(prefix + ".wo_a.weight", c.o_groups * c.o_lora_rank, H / c.o_groups * hd,
                       c.o_groups);
  a.wo_b = make_matrix(prefix + ".wo_b.weight", D, c.o_groups * c.o_lora_rank);
  a.attn_sink = make_plain(prefix + ".attn_sink", {H}, DType::kF32);
  mark_fp8({&a.wq_a, &a.wq_b, &a.wkv, &a.wo_b});
  const int tp = layout.tp.size();
  if (tp > 1) {
    cut_evenly(layout, ShardGroup::kTp, 0, &a.attn_sink);
    cut_evenly(layout, ShardGroup::kTp, 0, &a.wo_a);
    if (cuts_queries(c, layout)) cut_evenly(layout, ShardGroup::kTp, 0, &a.wq_b);
    if (divides_parts(layout, a.wo_b.shape[1], tp)) {
      cut_evenly(layout, ShardGroup::kTp, 1, &a.wo_b);
    }
  }
  if (ratio > 0) a.compressor = make_compressor(prefix + ".compressor", ratio, hd, D);
  if (ratio == 4) {
    IndexerWeights indexer;
    const std::string p = prefix + ".indexer";
    indexer.wq_b =
        make_matrix(p + ".wq_b.weight", c.index_n_heads * c.index_head_dim, c.q_lora_rank);
    mark_fp8({&indexer.wq_b});
    indexer.weights_proj = make_matrix(p + ".weights_proj.weight", c.index_n_heads, D);
    indexer.compressor = make_compressor(p + ".compressor", ratio, c.index_head_dim, D);
    for (Parameter* frozen :
         {&indexer.wq_b, &indexer.weights_proj, &indexer.compressor.wkv, &indexer.compressor.wgate,
          &indexer.compressor.ape, &indexer.compressor.norm}) {
      frozen->has_gradient = false;
    }
    a.indexer = std::move(indexer);
  }
  return a;
}

/// @param group who shares the expert.
ExpertWeights make_expert(const std::string& prefix, int64_t hidden, int64_t intermediate,
                          const Layout& layout, ShardGroup group) {
  ExpertWeights e;
  e.w1 = make_matrix(prefix + ".w1.weight", intermediate, hidden);
  e.w2 = make_matrix(prefix + ".w2.weight", hidden, intermediate);
  e.w3 = make_matrix(prefix + ".w3.weight", intermediate, hidden);
  mark_fp8({&e.w1, &e.w2, &e.w3});
  const int degree = members_of(layout, group).size();
  if (degree == 1) return e;
  const bool cuts = divides_parts(layout, intermediate, degree);
  for (Parameter* p : {&e.w1, &e.w2, &e.w3}) {
    if (cuts) {
      cut_evenly(layout, group, p == &e.w2 ? 1 : 0, p);
    } else {
      p->gradient_group = group;  // each member has it whole, for its own rows
    }
  }
  return e;
}

MoeWeights make_moe(const ModelConfig& c, const std::string& prefix, bool hash,
                    const Layout& layout) {
  MoeWeights m;
  m.gate = make_matrix(prefix + ".gate.weight", c.n_routed_experts, c.hidden_size);
  if (hash) {
    m.tid2eid = make_table(prefix + ".gate.tid2eid", {c.vocab_size, c.num_experts_per_tok});
  } else {
    m.bias = make_plain(prefix + ".gate.bias", {c.n_routed_experts}, DType::kF32);
    m.bias->has_gradient = false;
  }
  if (layout.tp.size() > 1) sum_over_tp({&m.gate});
  const RowRange local = local_experts(c, layout);
  for (int64_t e = local.begin; e < local.end(); ++e) {
    m.experts.push_back(make_expert(str_cat(prefix, ".experts.", e), c.hidden_size,
                                    c.moe_intermediate_size, layout, ShardGroup::kEtp));
  }
  m.shared = make_expert(prefix + ".shared_experts", c.hidden_size, c.moe_intermediate_size, layout,
                         ShardGroup::kTp);
  return m;
}

LayerWeights make_layer(const ModelConfig& c, const std::string& prefix, int64_t ratio, bool hash,
                        const Layout& layout) {
  const int64_t M = c.hc_mult, width = M * c.hidden_size;
  LayerWeights l;
  l.attn_norm = make_plain(prefix + ".attn_norm.weight", {c.hidden_size}, DType::kBF16);
  l.ffn_norm = make_plain(prefix + ".ffn_norm.weight", {c.hidden_size}, DType::kBF16);
  l.hc_attn = make_hyper_connection(prefix + ".hc_attn", (2 + M) * M, width, 3);
  l.hc_ffn = make_hyper_connection(prefix + ".hc_ffn", (2 + M) * M, width, 3);
  if (splits_streams(layout)) {
    sum_over_tp({&l.attn_norm, &l.ffn_norm});
    sum_over_tp(&l.hc_attn);
    sum_over_tp(&l.hc_ffn);
  }
  l.attn = make_attention(c, prefix + ".attn", ratio, layout);
  l.ffn = make_moe(c, prefix + ".ffn", hash, layout);
  return l;
}

// One walk for the const and the mutable visitor.
template <typename W, typename Visit>
void visit_hyper_connection(W& hc, Visit& visit) {
  visit(hc.fn);
  visit(hc.base);
  visit(hc.scale);
}

template <typename W, typename Visit>
void visit_compressor(W& c, Visit& visit) {
  visit(c.wkv);
  visit(c.wgate);
  visit(c.ape);
  visit(c.norm);
}

template <typename W, typename Visit>
void visit_layer(W& l, Visit& visit) {
  visit_hyper_connection(l.hc_attn, visit);
  visit(l.attn_norm);
  auto& a = l.attn;
  for (auto* p :
       {&a.wq_a, &a.q_norm, &a.wq_b, &a.wkv, &a.kv_norm, &a.wo_a, &a.wo_b, &a.attn_sink}) {
    visit(*p);
  }
  if (a.compressor) visit_compressor(*a.compressor, visit);
  if (a.indexer) {
    visit(a.indexer->wq_b);
    visit(a.indexer->weights_proj);
    visit_compressor(a.indexer->compressor, visit);
  }
  visit_hyper_connection(l.hc_ffn, visit);
  visit(l.ffn_norm);
  visit(l.ffn.gate);
  if (l.ffn.bias) visit(*l.ffn.bias);
  if (l.ffn.tid2eid) visit(*l.ffn.tid2eid);
  for (auto& e : l.ffn.experts) {
    visit(e.w1);
    visit(e.w2);
    visit(e.w3);
  }
  visit(l.ffn.shared.w1);
  visit(l.ffn.shared.w2);
  visit(l.ffn.shared.w3);
}

template <typename W, typename Visit>
void visit_weights(W& w, Visit& visit) {
  // A stage visits what it has.
  if (!w.embed.name.empty()) visit(w.embed);
  for (auto& layer : w.layers) visit_layer(layer, visit);
  if (w.layout.is_last_stage) {
    visit_hyper_connection(w.hc_head, visit);
    visit(w.norm);
    visit(w.head);
  }
  for (auto& m : w.mtp) {
    for (auto* p : {&m.e_proj, &m.h_proj, &m.enorm, &m.hnorm}) visit(*p);
    visit_layer(m.block, visit);
    visit_hyper_connection(m.hc_head, visit);
    visit(m.norm);
  }
}

}  // namespace

Weights make_weights(const ModelConfig& config, bool with_mtp, const Layout& layout) {
  check_layout(config, layout);
  const int64_t D = config.hidden_size, M = config.hc_mult, V = config.vocab_size;
  const bool by_rows = splits_streams(layout);
  const RowRange vocabulary = vocabulary_rows(config, layout, layout.tp.rank());
  Weights w;
  w.config = config;
  w.layout = layout;
  if (layout.num_layers < 0) w.layout.num_layers = config.num_hidden_layers;
  const bool has_mtp = with_mtp && layout.is_last_stage && config.num_nextn_predict_layers > 0;
  if (layout.is_first_stage || has_mtp) {
    w.embed = make_plain("embed.weight", {V, D}, DType::kBF16);
    w.embed.has_gradient = layout.is_first_stage;  // MTP modules read it alone
    if (cuts_vocabulary(config, layout)) {
      w.embed.cut(ShardGroup::kTp, 0, vocabulary.begin, vocabulary.count);
    } else if (by_rows) {
      sum_over_tp({&w.embed});
    }
  }
  if (layout.is_last_stage) {
    w.head = make_matrix("head.weight", V, D);
    if (cuts_vocabulary(config, layout)) {
      w.head.cut(ShardGroup::kTp, 0, vocabulary.begin, vocabulary.count);
    }
    w.norm = make_plain("norm.weight", {D}, DType::kBF16);
    w.hc_head = make_hyper_connection("hc_head", M, M * D, 1);
    if (by_rows) {
      sum_over_tp({&w.norm});
      sum_over_tp(&w.hc_head);
    }
  }
  for (int64_t i = 0; i < w.layout.num_layers; ++i) {
    const int64_t l = w.layout.first_layer + i;
    w.layers.push_back(make_layer(config, str_cat("layers.", l), config.ratio(l),
                                  config.is_hash_layer(l), layout));
  }
  for (int64_t i = 0; has_mtp && i < config.num_nextn_predict_layers; ++i) {
    const std::string prefix = str_cat("mtp.", i);
    MtpWeights m;
    m.e_proj = make_matrix(prefix + ".e_proj.weight", D, D);
    m.h_proj = make_matrix(prefix + ".h_proj.weight", D, D);
    m.enorm = make_plain(prefix + ".enorm.weight", {D}, DType::kBF16);
    m.hnorm = make_plain(prefix + ".hnorm.weight", {D}, DType::kBF16);
    m.norm = make_plain(prefix + ".norm.weight", {D}, DType::kBF16);
    m.hc_head = make_hyper_connection(prefix + ".hc_head", M, M * D, 1);
    if (by_rows) {
      sum_over_tp({&m.e_proj, &m.h_proj, &m.enorm, &m.hnorm, &m.norm});
      sum_over_tp(&m.hc_head);
    }
    m.block = make_layer(config, prefix, /*ratio=*/0, /*hash=*/false, layout);
    w.mtp.push_back(std::move(m));
  }
  return w;
}

bool is_embedding_copy(const Weights& weights, const Parameter& p) {
  return !weights.layout.is_first_stage && p.name == weights.embed.name;
}

void set_precision(const ExecContext& ctx, Weights* weights, Precision precision) {
  const ModelConfig& c = weights->config;
  const bool is_power_of_two = (c.index_head_dim & (c.index_head_dim - 1)) == 0;
  FATHOM_CHECK(
      precision != Precision::kParityFp8 || c.num_indexer_layers() == 0 || is_power_of_two,
      "--precision parity-fp8 rotates indexer queries and keys by a Hadamard matrix, which "
      "the model's index_head_dim of ",
      c.index_head_dim, " has none for\n  fix: use --precision parity-bf16 or fp32");
  const Layout& l = weights->layout;
  FATHOM_ASSERT(precision != Precision::kParityFp8 || l.part_multiple % 128 == 0 ||
                    (l.tp.size() == 1 && l.etp.size() == 1),
                "the weights are cut for modes without FP8 blocks");
  const Rounding rounding(precision);
  weights->rounding = rounding;
  const auto set_layer = [&](LayerWeights& layer) {
    layer.rounding = layer.attn.rounding = layer.ffn.rounding = rounding;
  };
  for (LayerWeights& layer : weights->layers) set_layer(layer);
  for (MtpWeights& m : weights->mtp) set_layer(m.block);
  for_each_parameter(*weights, [&](Parameter& p) {
    p.precision = precision;
    p.compute = Tensor();  // memory of its own, whatever it was
  });
  refresh_weights(ctx, weights);
}

void move_weights(const ExecContext& ctx, Weights* weights) {
  for_each_parameter(*weights, [&](Parameter& p) { p.move_to(ctx.device); });
}

void refresh_weights(const ExecContext& ctx, Weights* weights) {
  const std::vector<Parameter*> all = parameters_by_name(*weights);
  ctx.threads->parallel_for(static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) all[static_cast<size_t>(i)]->refresh();
  });
}

const dist::Group& members_of(const Layout& layout, ShardGroup group) {
  FATHOM_ASSERT(group != ShardGroup::kNone);
  return group == ShardGroup::kTp ? layout.tp : layout.etp;
}

Weights shard_weights(const Weights& whole, const Layout& layout) {
  Weights part = make_weights(whole.config, !whole.mtp.empty(), layout);
  std::map<std::string, const Parameter*> by_name;
  for_each_parameter(whole, [&](const Parameter& p) { by_name[p.name] = &p; });
  for_each_parameter(part, [&](Parameter& p) {
    const Parameter& from = *by_name.at(p.name);
    p.alloc();
    if (p.kind == ParameterKind::kTable) {
      p.cut_from_global(from.master.i32(), p.master.i32());
      return;
    }
    std::vector<float> global(static_cast<size_t>(p.global_numel()));
    std::vector<float> values(static_cast<size_t>(p.numel()));
    from.get_row_major(global.data());
    p.cut_from_global(global.data(), values.data());
    p.set_row_major(values.data());
  });
  return part;
}

void for_each_parameter(Weights& weights, const std::function<void(Parameter&)>& visit) {
  visit_weights(weights, visit);
}

void for_each_parameter(const Weights& weights,
                        const std::function<void(const Parameter&)>& visit) {
  visit_weights(weights, visit);
}

std::vector<Parameter*> parameters_by_name(Weights& weights) {
  std::vector<Parameter*> all;
  for_each_parameter(weights, [&](Parameter& p) { all.push_back(&p); });
  std::sort(all.begin(), all.end(), [](auto* a, auto* b) { return a->name < b->name; });
  return all;
}

}  // namespace fathom
