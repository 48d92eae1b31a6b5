// All parameters of a model, as plain structs named as in the official checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/config.h"
#include "fathom/model/layout.h"
#include "fathom/model/parameter.h"
#include "fathom/model/rounding.h"

namespace fathom {

struct HyperConnectionWeights {  // hc_*_fn, hc_*_base, hc_*_scale
  Parameter fn, base, scale;
};

struct CompressorWeights {
  int64_t ratio = 0, coff = 1, width = 0;
  Parameter wkv, wgate, ape, norm;
};

struct IndexerWeights {
  Parameter wq_b, weights_proj;
  CompressorWeights compressor;
};

struct AttentionWeights {
  Rounding rounding;
  int64_t ratio = 0;
  Parameter wq_a, q_norm, wq_b, wkv, kv_norm, wo_a, wo_b, attn_sink;
  std::optional<CompressorWeights> compressor;  // ratio > 0
  std::optional<IndexerWeights> indexer;        // ratio 4
};

struct ExpertWeights {
  Parameter w1, w2, w3;  // gate, down, up
};

struct MoeWeights {
  Rounding rounding;
  Parameter gate;
  std::optional<Parameter> bias;       // biased-score routing
  std::optional<Parameter> tid2eid;    // hash routing
  std::vector<ExpertWeights> experts;  // of this rank of ep
  ExpertWeights shared;
};

struct LayerWeights {
  Rounding rounding;
  Parameter attn_norm, ffn_norm;
  HyperConnectionWeights hc_attn, hc_ffn;
  AttentionWeights attn;
  MoeWeights ffn;
};

struct MtpWeights {
  Parameter e_proj, h_proj, enorm, hnorm, norm;
  HyperConnectionWeights hc_head;
  LayerWeights block;  // ratio 0, biased-score routing
};

struct Weights {
  ModelConfig config;
  Layout layout;      // what of the model is here
  Rounding rounding;  // set_precision() gives it to every part
  Precision precision() const { return rounding.precision(); }
  Parameter embed;                   // first stage; also where mtp is
  Parameter head, norm;              // last stage
  HyperConnectionWeights hc_head;    // last stage
  std::vector<LayerWeights> layers;  // of the stage; [i] is layer layout.first_layer + i
  std::vector<MtpWeights> mtp;       // last stage
};

/// Every parameter with its name and shape, memory not yet allocated (Parameter::alloc).
/// @param with_mtp false leaves `mtp` empty whatever the config says.
/// @param layout only this rank's parameters are there, and of those that are divided this rank's
/// part.
/// Errors: ConfigError when the layout does not fit the model.
Weights make_weights(const ModelConfig& config, bool with_mtp = true, const Layout& layout = {});

/// Whether p is the last stage's own copy of the embedding, which mtp reads: another stage trains it.
bool is_embedding_copy(const Weights& weights, const Parameter& p);

/// One rank's part of a model that is here as a whole, on the host, in fp32.
Weights shard_weights(const Weights& whole, const Layout& layout);

/// The ranks that a parameter's parts, or parts of its gradient, lie on.
const dist::Group& members_of(const Layout& layout, ShardGroup group);

/// Sets the mode of all parts and makes every `compute` from its master in it. In a copy of Weights
/// this leaves the original as it is: they share masters, so the copy is the same model in another
/// mode, up to date after refresh_weights().
/// Errors: UserError when the model has no form in the mode (parity-fp8 needs an index_head_dim
/// that is a power of two) or a weight is not finite.
void set_precision(const ExecContext& ctx, Weights* weights, Precision precision);

/// Moves every parameter to where the context computes.
void move_weights(const ExecContext& ctx, Weights* weights);

/// Makes every `compute` from its master again.
void refresh_weights(const ExecContext& ctx, Weights* weights);

/// Calls visit for every parameter, in a fixed order (embed, layers, norm, head, mtp).
void for_each_parameter(Weights& weights, const std::function<void(Parameter&)>& visit);
void for_each_parameter(const Weights& weights, const std::function<void(const Parameter&)>& visit);

/// Parameters sorted bytewise by name: the order of norms, checkpoints and optimizer state.
std::vector<Parameter*> parameters_by_name(Weights& weights);

}  // namespace fathom
