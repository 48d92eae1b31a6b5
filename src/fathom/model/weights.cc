#include "fathom/model/weights.h"

#include <algorithm>
#include <initializer_list>

#include "fathom/base/error.h"

namespace fathom {
namespace {

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

AttentionWeights make_attention(const ModelConfig& c, const std::string& prefix, int64_t ratio) {
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

ExpertWeights make_expert(const std::string& prefix, int64_t hidden, int64_t intermediate) {
  ExpertWeights e;
  e.w1 = make_matrix(prefix + ".w1.weight", intermediate, hidden);
  e.w2 = make_matrix(prefix + ".w2.weight", hidden, intermediate);
  e.w3 = make_matrix(prefix + ".w3.weight", intermediate, hidden);
  mark_fp8({&e.w1, &e.w2, &e.w3});
  return e;
}

MoeWeights make_moe(const ModelConfig& c, const std::string& prefix, bool hash) {
  MoeWeights m;
  m.gate = make_matrix(prefix + ".gate.weight", c.n_routed_experts, c.hidden_size);
  if (hash) {
    m.tid2eid = make_table(prefix + ".gate.tid2eid", {c.vocab_size, c.num_experts_per_tok});
  } else {
    m.bias = make_plain(prefix + ".gate.bias", {c.n_routed_experts}, DType::kF32);
    m.bias->has_gradient = false;
  }
  for (int64_t e = 0; e < c.n_routed_experts; ++e) {
    m.experts.push_back(
        make_expert(str_cat(prefix, ".experts.", e), c.hidden_size, c.moe_intermediate_size));
  }
  m.shared = make_expert(prefix + ".shared_experts", c.hidden_size, c.moe_intermediate_size);
  return m;
}

LayerWeights make_layer(const ModelConfig& c, const std::string& prefix, int64_t ratio, bool hash) {
  const int64_t M = c.hc_mult, width = M * c.hidden_size;
  LayerWeights l;
  l.attn_norm = make_plain(prefix + ".attn_norm.weight", {c.hidden_size}, DType::kBF16);
  l.ffn_norm = make_plain(prefix + ".ffn_norm.weight", {c.hidden_size}, DType::kBF16);
  l.hc_attn = make_hyper_connection(prefix + ".hc_attn", (2 + M) * M, width, 3);
  l.hc_ffn = make_hyper_connection(prefix + ".hc_ffn", (2 + M) * M, width, 3);
  l.attn = make_attention(c, prefix + ".attn", ratio);
  l.ffn = make_moe(c, prefix + ".ffn", hash);
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
  const int64_t D = config.hidden_size, M = config.hc_mult;
  Weights w;
  w.config = config;
  w.layout = layout;
  if (layout.num_layers < 0) w.layout.num_layers = config.num_hidden_layers;
  const bool has_mtp = with_mtp && layout.is_last_stage && config.num_nextn_predict_layers > 0;
  if (layout.is_first_stage || has_mtp) {
    w.embed = make_plain("embed.weight", {config.vocab_size, D}, DType::kBF16);
  }
  if (layout.is_last_stage) {
    w.head = make_matrix("head.weight", config.vocab_size, D);
    w.norm = make_plain("norm.weight", {D}, DType::kBF16);
    w.hc_head = make_hyper_connection("hc_head", M, M * D, 1);
  }
  for (int64_t i = 0; i < w.layout.num_layers; ++i) {
    const int64_t l = w.layout.first_layer + i;
    w.layers.push_back(
        make_layer(config, str_cat("layers.", l), config.ratio(l), config.is_hash_layer(l)));
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
    m.block = make_layer(config, prefix, /*ratio=*/0, /*hash=*/false);
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
  const Rounding rounding(precision);
  weights->rounding = rounding;
  const auto set_layer = [&](LayerWeights& l) {
    l.rounding = l.attn.rounding = l.ffn.rounding = rounding;
  };
  for (LayerWeights& l : weights->layers) set_layer(l);
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
