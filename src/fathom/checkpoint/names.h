// Names of V4 tensors: the official release's, the SGLang style of BF16 casts, and those of
// transformers (in memory, and the mixture that its save_pretrained writes). The program's own
// names are the official ones.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

enum class NameDialect { kOfficial, kSglang, kTransformers };

std::string_view name_dialect_to_string(NameDialect dialect);  // "official"
std::optional<NameDialect> name_dialect_from_string(std::string_view text);

/// What a stored name stands for.
struct TensorName {
  std::string official;   // of the weight, also when the tensor is its scale
  bool is_scale = false;  // of the weight `official`
  /// All experts of a layer in one tensor: "gate_up" [E, 2I, D] or "down" [E, D, I]. `official`
  /// then ends in ".experts.gate_up" or ".experts.down", which is no tensor of the program.
  bool is_fused = false;
};

/// Reads a name of any dialect. Names that belong to none come back with what rules applied, and
/// match no parameter.
TensorName parse_tensor_name(std::string_view name, int64_t num_hidden_layers);

/// The stored name of an official one. Official names of routed experts have no name of their own
/// in the transformers dialect (InternalError): see fused_stored_name().
std::string stored_name(const std::string& official, NameDialect dialect,
                        int64_t num_hidden_layers);

/// The stored name of a quantised weight's scale: "<...>.scale", or "<...>.weight_scale_inv".
std::string stored_scale_name(const std::string& official, NameDialect dialect,
                              int64_t num_hidden_layers);

/// The place of a routed expert's matrix: "layers.3.ffn", 17, "w1".
struct ExpertName {
  std::string moe;
  int64_t expert;
  std::string matrix;
};
std::optional<ExpertName> parse_expert_name(const std::string& official);

/// The stored name of the tensor that holds a routed expert's matrix together with those of all
/// other experts of its layer: [E, 2I, D] with w1 above w3, or [E, D, I] for w2. Null where the
/// dialect stores them one by one, and for names that are no routed expert's.
std::optional<std::string> fused_stored_name(const std::string& official, NameDialect dialect);

/// The module of an "mtp.<i>.<...>" name.
std::optional<int64_t> mtp_module(const std::string& official);

/// A copy of the embedding or of the head inside an MTP module, which shares the main model's. In
/// SGLang-style names the module is a layer and the twins keep that dialect's leaf names.
bool is_shared_copy(std::string_view official);

/// Judged by the names that are there.
NameDialect detect_name_dialect(const std::vector<std::string>& names);

}  // namespace fathom
