#include "fathom/bench/model_work.h"

#include <algorithm>
#include <cmath>

namespace fathom {
namespace {

double as_double(int64_t n) { return static_cast<double>(n); }

/// Products of a token with the weights of its route, and bytes of all weights that T tokens reach.
void add_weights(const Weights& w, double num_tokens, double bytes_per_weight, WorkAmount* work) {
  const ModelConfig& c = w.config;
  const double chosen = as_double(c.num_experts_per_tok) / as_double(c.n_routed_experts);
  // An expert that each token passes by with probability 1 - chosen.
  const double reached = 1.0 - std::pow(1.0 - chosen, num_tokens);
  for_each_parameter(w, [&](const Parameter& p) {
    if (p.kind != ParameterKind::kMatrix || p.name.starts_with("mtp.")) return;
    const bool is_routed = p.name.find(".experts.") != std::string::npos;
    const double n = as_double(p.numel());
    work->flops += 2.0 * n * num_tokens * (is_routed ? chosen : 1.0);
    work->weight_bytes += bytes_per_weight * n * (is_routed ? reached : 1.0);
  });
}

/// Attention and indexer of the token at `position`.
void add_attention(const ModelConfig& c, int64_t position, double times, WorkAmount* work) {
  const double per_key = 4.0 * as_double(c.num_attention_heads * c.head_dim);
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const int64_t ratio = c.ratio(l);
    const int64_t window = std::min(position + 1, c.sliding_window);
    const int64_t visible = ratio == 0 ? 0 : (position + 1) / ratio;
    const int64_t seen = ratio == 4 ? std::min(visible, c.index_topk) : visible;
    work->flops += times * per_key * as_double(window + seen);
    if (ratio == 4) {
      work->flops += times * 2.0 * as_double(c.index_n_heads * c.index_head_dim * visible);
    }
  }
}

double state_bytes(const ModelConfig& c, int64_t context, double bytes_per_value) {
  double values = 0.0;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const int64_t ratio = c.ratio(l);
    const int64_t visible = ratio == 0 ? 0 : context / ratio;
    const int64_t seen = ratio == 4 ? std::min(visible, c.index_topk) : visible;
    values += as_double((std::min(context, c.sliding_window) + seen) * c.head_dim);
    if (ratio == 4) values += as_double(visible * c.index_head_dim);
  }
  return values * bytes_per_value;
}

}  // namespace

WorkAmount forward_work(const Weights& w, int64_t num_sequences, int64_t length,
                        double bytes_per_weight) {
  WorkAmount work;
  add_weights(w, as_double(num_sequences * length), bytes_per_weight, &work);
  for (int64_t t = 0; t < length; ++t) add_attention(w.config, t, as_double(num_sequences), &work);
  return work;
}

WorkAmount train_work(const Weights& w, int64_t num_sequences, int64_t length,
                      double bytes_per_weight) {
  WorkAmount work = forward_work(w, num_sequences, length, bytes_per_weight);
  work.flops *= 3.0;
  work.weight_bytes *= 2.0;  // forward, and the gradients of its inputs
  return work;
}

WorkAmount decode_work(const Weights& w, int64_t batch, int64_t context, double bytes_per_weight) {
  WorkAmount work;
  add_weights(w, as_double(batch), bytes_per_weight, &work);
  add_attention(w.config, context, as_double(batch), &work);
  work.state_bytes = as_double(batch) * state_bytes(w.config, context, bytes_per_weight);
  return work;
}

}  // namespace fathom
