#include "fathom/model/named_models.h"

#include <algorithm>
#include <filesystem>

#include "fathom/base/error.h"

namespace fathom {
namespace {

ModelConfig flash() {
  ModelConfig c;
  c.vocab_size = 129280;
  c.hidden_size = 4096;
  c.num_hidden_layers = 43;
  c.num_nextn_predict_layers = 1;
  c.num_attention_heads = 64;
  c.head_dim = 512;
  c.qk_rope_head_dim = 64;
  c.q_lora_rank = 1024;
  c.o_groups = 8;
  c.o_lora_rank = 1024;
  c.sliding_window = 128;
  c.compress_ratios = {0, 0};
  for (int i = 0; i < 20; ++i) c.compress_ratios.insert(c.compress_ratios.end(), {4, 128});
  c.compress_ratios.insert(c.compress_ratios.end(), {4, 0});
  c.index_n_heads = 64;
  c.index_head_dim = 128;
  c.index_topk = 512;
  c.n_routed_experts = 256;
  c.num_experts_per_tok = 6;
  c.moe_intermediate_size = 2048;
  c.num_hash_layers = 3;
  c.routed_scaling_factor = 1.5;
  c.swiglu_limit = 10.0;
  c.rope_scaling = {16.0, 32.0, 1.0, 65536};
  c.max_position_embeddings = 1048576;
  c.eos_token_ids = {1};
  return c;
}

ModelConfig pro() {
  ModelConfig c = flash();
  c.hidden_size = 7168;
  c.num_hidden_layers = 61;
  c.num_attention_heads = 128;
  c.q_lora_rank = 1536;
  c.o_groups = 16;
  c.compress_ratios = {128, 128};
  for (int i = 0; i < 29; ++i) c.compress_ratios.insert(c.compress_ratios.end(), {4, 128});
  c.compress_ratios.insert(c.compress_ratios.end(), {4, 0});
  c.index_topk = 1024;
  c.n_routed_experts = 384;
  c.moe_intermediate_size = 3072;
  c.routed_scaling_factor = 2.5;
  return c;
}

ModelConfig flash_4layer(int64_t num_experts) {
  ModelConfig c = flash();
  c.num_hidden_layers = 4;
  c.num_nextn_predict_layers = 0;
  c.compress_ratios = {0, 0, 4, 128};
  c.n_routed_experts = num_experts;
  return c;
}

}  // namespace

const std::vector<std::string>& model_names() {
  static const std::vector<std::string> names = {"v4flash", "v4pro", "v4flash-4layer",
                                                 "v4flash-4layer-64e"};
  return names;
}

ModelConfig named_model(const std::string& name) {
  if (name == "v4flash") return flash();
  if (name == "v4pro") return pro();
  if (name == "v4flash-4layer") return flash_4layer(256);
  if (name == "v4flash-4layer-64e") return flash_4layer(64);
  std::string known;
  for (const std::string& n : model_names()) known += (known.empty() ? "" : ", ") + n;
  throw UserError(str_cat("no model is named \"", name, "\"\n  fix: use one of ", known,
                          ", a config.json, or a directory with one"));
}

ModelConfig named_or_stored_model(const std::string& name_or_path) {
  std::error_code error;
  if (std::filesystem::is_directory(name_or_path, error)) return load_model_config(name_or_path);
  if (name_or_path.ends_with(".json")) {
    return parse_model_config(read_json_file(name_or_path), name_or_path);
  }
  return named_model(name_or_path);
}

}  // namespace fathom
