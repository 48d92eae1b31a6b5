#include "fathom/checkpoint/dcp_weights.h"

#include <bit>
#include <vector>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/fill_weights.h"

namespace fathom {
namespace {

void widen_bf16(const uint16_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i)
    to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
}

}  // namespace

void check_stored(const DcpReader& reader, const std::string& key_prefix, const Parameter& p,
                  int64_t num_experts) {
  const MegatronSlice s = megatron_slice(p.name, p.global_shape, num_experts);
  const std::string key = key_prefix + s.key;
  const DcpTensor& stored = reader.tensor(key);
  FATHOM_CHECK(stored.shape == s.shape, reader.directory(), ": ", key, " has the shape ",
               shape_to_string(stored.shape), ", the model needs ", shape_to_string(s.shape),
               "\n  fix: load a checkpoint of the same model, or use its config.json");
  const bool is_table = p.kind == ParameterKind::kTable;
  const bool fits = is_table ? stored.dtype == DType::kI32
                             : stored.dtype == DType::kBF16 || stored.dtype == DType::kF32;
  FATHOM_CHECK(fits, reader.directory(), ": ", key, " is stored as ", dtype_name(stored.dtype),
               ", expected ", is_table ? "I32" : "BF16 or F32");
}

namespace {

// A box of a tensor as fp32.
void read_box_f32(DcpReader& reader, const std::string& key, const std::vector<int64_t>& offsets,
                  const std::vector<int64_t>& sizes, float* out) {
  if (reader.tensor(key).dtype == DType::kF32) return reader.read_box(key, offsets, sizes, out);
  int64_t n = 1;
  for (const int64_t size : sizes) n *= size;
  std::vector<uint16_t> half(static_cast<size_t>(n));
  reader.read_box(key, offsets, sizes, half.data());
  widen_bf16(half.data(), n, out);
}

}  // namespace

void read_parameter_rows(DcpReader& reader, const Parameter& p, int64_t num_experts, int64_t begin,
                         int64_t end, float* out) {
  MegatronSlice s = megatron_slice(p.name, p.global_shape, num_experts);
  if (p.global_shape.size() == 2) {
    // The parameter's dimensions are the last ones of the stored box.
    const size_t row = s.sizes.size() - 2;
    s.offsets[row] += begin;
    s.sizes[row] = end - begin;
  }
  read_box_f32(reader, s.key, s.offsets, s.sizes, out);
}

void read_parameter(DcpReader& reader, const std::string& key_prefix, const Parameter& p,
                    int64_t num_experts, Tensor* out) {
  check_stored(reader, key_prefix, p, num_experts);
  MegatronSlice s = megatron_slice(p.name, p.global_shape, num_experts);
  // This rank's part of it: the parameter's dimensions are the last ones of the stored box.
  const size_t axis = s.sizes.size() - p.global_shape.size() + static_cast<size_t>(p.shard_axis);
  s.offsets[axis] += p.shard_begin;
  s.sizes[axis] = p.shape[static_cast<size_t>(p.shard_axis)];
  const std::string key = key_prefix + s.key;
  if (p.kind == ParameterKind::kTable) {
    const Tensor table = Tensor::empty(p.shape, DType::kI32);
    reader.read_box(key, s.offsets, s.sizes, table.i32());
    upload_memory(p.device, out->i32(), table.i32(), static_cast<size_t>(table.num_bytes()));
    return;
  }
  const bool is_in_place = p.kind != ParameterKind::kMatrix && p.device == nullptr;
  Tensor rows = is_in_place ? *out : Tensor::empty({p.numel()});  // row-major fp32
  read_box_f32(reader, key, s.offsets, s.sizes, rows.f32());
  if (!is_in_place) p.store_row_major(rows.f32(), *out);
}

void write_parameter(DcpWriter& writer, const std::string& key_prefix, const Parameter& p,
                     int64_t num_experts, const Tensor& values) {
  const MegatronSlice s = megatron_slice(p.name, p.global_shape, num_experts);
  const std::string key = key_prefix + s.key;
  if (p.kind == ParameterKind::kMatrix) {
    const Tensor rows = Tensor::empty(p.shape);
    p.load_row_major(values, rows.f32());
    writer.add_chunk(key, DType::kF32, s.shape, s.offsets, s.sizes, rows.bytes());
  } else {
    const Tensor host = values.to_host();
    writer.add_chunk(key, host.dtype(), s.shape, s.offsets, s.sizes, host.bytes());
  }
}

void load_torch_dist(const ExecContext& ctx, const std::string& path, Weights* weights) {
  DcpReader reader(resolve_checkpoint(path));
  for_each_parameter(*weights, [&](Parameter& p) {
    check_stored(reader, "", p, weights->config.n_routed_experts);
  });
  fill_weights(ctx, weights,
               {[&](const Parameter& p, int64_t begin, int64_t end, float* out) {
                  read_parameter_rows(reader, p, weights->config.n_routed_experts, begin, end, out);
                },
                [&](const Parameter& p, int32_t* out) {
                  const MegatronSlice s =
                      megatron_slice(p.name, p.global_shape, weights->config.n_routed_experts);
                  reader.read_box(s.key, s.offsets, s.sizes, out);
                }});
}

void load_torch_dist(const std::string& path, Weights* weights) {
  ThreadPool one(1);
  load_torch_dist({&one, CpuIsa::kAvx2}, path, weights);
}

Json megatron_args(const ModelConfig& c) {
  Json layer_is_moe = Json::array();
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) layer_is_moe.push_back(1);
  return Json{{"num_layers", c.num_hidden_layers},
              {"hidden_size", c.hidden_size},
              {"num_attention_heads", c.num_attention_heads},
              {"kv_channels", c.head_dim},
              {"num_experts", c.n_routed_experts},
              {"moe_router_topk", c.num_experts_per_tok},
              {"moe_ffn_hidden_size", c.moe_intermediate_size},
              {"moe_shared_expert_intermediate_size", c.n_shared_experts * c.moe_intermediate_size},
              {"moe_layer_freq", layer_is_moe},
              {"mtp_num_layers", c.num_nextn_predict_layers},
              {"vocab_size", c.vocab_size},
              {"padded_vocab_size", c.vocab_size},
              {"max_position_embeddings", c.max_position_embeddings},
              {"norm_epsilon", c.rms_norm_eps},
              {"q_lora_rank", c.q_lora_rank},
              {"qk_pos_emb_head_dim", c.qk_rope_head_dim},
              {"rotary_base", c.rope_theta},
              {"untie_embeddings_and_output_weights", true},
              {"add_position_embedding", false},
              {"tensor_model_parallel_size", 1},
              {"pipeline_model_parallel_size", 1},
              {"expert_model_parallel_size", 1},
              {"expert_tensor_parallel_size", 1},
              {"context_parallel_size", 1},
              {"world_size", 1},
              {"data_parallel_size", 1},
              {"no_save_rng", true},
              {"consumed_train_samples", 0},
              {"skipped_train_samples", 0},
              {"consumed_valid_samples", 0}};
}

}  // namespace fathom
