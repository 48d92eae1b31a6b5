// Official tensor names and the keys and boxes under which a torch_dist checkpoint stores them.
//
//   embed / head / norm            embedding.word_embeddings, output_layer, decoder.final_layernorm
//   hc_head_*                      decoder.hc_head_params.hc_head_*
//   layers.N.attn_norm / ffn_norm  decoder.layers.N.input_layernorm / pre_mlp_layernorm
//   layers.N.hc_*                  decoder.layers.N.hc_*
//   layers.N.attn.*                decoder.layers.N.self_attention.*
//     ...indexer.wq_b, weights_proj  ...indexer.linear_wq_b, linear_weights_proj
//   layers.N.ffn.gate.weight / bias / tid2eid
//                                  decoder.layers.N.mlp.router.weight / expert_bias / tid2eid
//   ...ffn.shared_experts.w1, w3   ...mlp.shared_experts.linear_fc1 [2I, D]: w1 rows, then w3 rows
//   ...ffn.shared_experts.w2       ...mlp.shared_experts.linear_fc2 [D, I]
//   ...ffn.experts.X.w1, w3        ...mlp.experts.experts.linear_fc1 [E, 2I, D], box X of dimension
//   0
//   ...ffn.experts.X.w2            ...mlp.experts.experts.linear_fc2 [E, D, I]
//   mtp.M.{e_proj,h_proj,enorm,hnorm}.weight   mtp.layers.M.* (our own choice, as is the next line)
//   mtp.M.norm / hc_head_*         mtp.layers.M.final_layernorm / hc_head_params.hc_head_*
//   mtp.M.<anything of a layer>    mtp.layers.M.transformer_layer.<as in decoder.layers.N>
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/numerics/dtype.h"

namespace fathom {

/// Where one official tensor lies.
struct MegatronSlice {
  std::string key;
  std::vector<int64_t> shape;           // of the whole stored tensor
  std::vector<int64_t> offsets, sizes;  // the official tensor's box; as many elements
  DType dtype = DType::kBF16;  // BF16; F32 for sinks, ape, hc_* and gate.bias; I32 for tid2eid
};

/// @param name official name ("layers.0.attn.wq_a.weight").
/// @param shape of the official tensor.
/// @param num_experts routed experts of a layer.
/// Errors: UserError for a name that no V4 tensor has.
MegatronSlice megatron_slice(const std::string& name, const std::vector<int64_t>& shape,
                             int64_t num_experts);

/// The official name of a piece of a stored tensor.
/// @param expert index on the expert axis; used by routed experts alone.
/// @param up_half true for the second half of the rows of a linear_fc1.
/// Errors: UserError for a key that is not in the table above.
std::string official_name(const std::string& key, int64_t expert, bool up_half);

/// True for official names whose values torch_dist keeps in fp32 (attn_sink, ape, hc_*, gate.bias).
bool is_kept_fp32(std::string_view name);

}  // namespace fathom
