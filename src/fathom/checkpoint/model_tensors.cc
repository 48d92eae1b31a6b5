#include "fathom/checkpoint/model_tensors.h"

#include <algorithm>
#include <set>

#include "fathom/base/error.h"
#include "fathom/base/json.h"

namespace fathom {
namespace {

constexpr size_t kMaxListed = 8;

ModelConfig read_config(const std::string& directory) {
  ModelConfig config = load_model_config(directory);
  const std::string path = join_path(directory, "config.json");
  check_quantization_config(read_json_file(path), path);
  return config;
}

}  // namespace

ModelTensors::ModelTensors(const std::string& directory, bool with_mtp, ScaleCheck check)
    : directory_(directory), config_(read_config(directory)), shards_(directory) {
  for (const std::string& w : shards_.warnings()) notes_.push_back(w);
  std::vector<std::string> names;
  bool has_mtp = false;
  for (const auto& [name, tensor] : shards_.tensors()) {
    names.push_back(name);
    has_mtp |= mtp_module(parse_tensor_name(name, config_.num_hidden_layers).official) == 0;
  }
  dialect_ = detect_name_dialect(names);
  if (!with_mtp || !has_mtp) {
    if (with_mtp && config_.num_nextn_predict_layers > 0) {
      notes_.push_back(str_cat(directory, ": num_nextn_predict_layers is ",
                               config_.num_nextn_predict_layers,
                               " in config.json, the files hold no MTP module"));
    }
    config_.num_nextn_predict_layers = 0;
    config_.compress_ratios.resize(static_cast<size_t>(config_.num_hidden_layers));
  }
  collect(with_mtp, check);
  match(make_weights(config_));
  if (problems_.empty()) return;
  std::string text = str_cat(directory, ": the tensors are not those of its config.json, ",
                             problems_.size(), problems_.size() == 1 ? " problem:" : " problems:");
  for (size_t i = 0; i < std::min(kMaxListed, problems_.size()); ++i) {
    text += "\n  - " + problems_[i];
  }
  if (problems_.size() > kMaxListed) {
    text += str_cat("\n  - and ", problems_.size() - kMaxListed, " more");
  }
  throw UserError(text + "\n  fix: fetch or convert this checkpoint again");
}

// Pairs weights with scales and finds out how each is encoded.
void ModelTensors::collect(bool with_mtp, ScaleCheck check) {
  std::map<std::string, const StoredTensor*> weights, scales;
  int64_t num_foreign_mtp = 0, num_shared_copies = 0;
  for (const auto& [name, tensor] : shards_.tensors()) {
    const TensorName parsed = parse_tensor_name(name, config_.num_hidden_layers);
    const auto module = mtp_module(parsed.official);
    if (module && *module >= config_.num_nextn_predict_layers) {
      ++num_foreign_mtp;
      continue;
    }
    if (is_shared_copy(parsed.official)) {
      ++num_shared_copies;
      continue;
    }
    auto& side = parsed.is_scale ? scales : weights;
    const auto [it, fresh] = side.emplace(parsed.official, &tensor);
    if (!fresh) {
      problems_.push_back(
          str_cat(it->second->describe(), " and ", tensor.describe(), " are the same parameter"));
    }
  }
  if (with_mtp && num_foreign_mtp > 0) {
    notes_.push_back(str_cat(directory_, ": ", num_foreign_mtp,
                             " tensors of MTP or draft modules are left aside"));
  }
  if (num_shared_copies > 0) {
    notes_.push_back(str_cat(directory_, ": ", num_shared_copies,
                             " copies of the embedding or head ",
                             "in MTP modules are left aside; the modules share the main model's"));
  }
  for (const auto& [official, tensor] : weights) {
    const auto scale = scales.find(official);
    const StoredTensor* companion = scale == scales.end() ? nullptr : scale->second;
    if (scale != scales.end()) scales.erase(scale);
    // Some repacks keep the scale of wo_a beside its BF16 weight.
    const bool stale =
        official.ends_with(".wo_a.weight") && tensor->entry->type->dtype == DType::kBF16;
    try {
      encoded_[official] = identify_encoding(*tensor, stale ? nullptr : companion, check);
    } catch (const UserError& e) {
      undecodable_.insert(official);
      const std::string text = e.what();
      problems_.push_back(text.substr(0, text.find("\n  fix:")));
    }
  }
  for (const auto& [official, tensor] : scales) {
    problems_.push_back(str_cat(tensor->describe(), " is a scale without a weight"));
  }
}

// Finds every parameter's rows, and what belongs to no parameter.
void ModelTensors::match(const Weights& expected) {
  std::set<std::string> used;
  const int64_t I = config_.moe_intermediate_size, D = config_.hidden_size;
  const int64_t E = config_.n_routed_experts;
  for_each_parameter(expected, [&](const Parameter& p) {
    const auto it = encoded_.find(p.name);
    if (it != encoded_.end()) {
      const EncodedTensor& t = it->second;
      used.insert(p.name);
      const bool is_table = t.dtype == DType::kI64 || t.dtype == DType::kI32;
      if (t.shape != p.shape) {
        problems_.push_back(str_cat(t.weight.describe(), " must decode to ",
                                    shape_to_string(p.shape), ", got ", shape_to_string(t.shape)));
      } else if (is_table != (p.kind == ParameterKind::kTable)) {
        problems_.push_back(str_cat(t.weight.describe(), ": ", p.name, " must be ",
                                    is_table ? "of floating point" : "I64 or I32"));
      }
      sources_[p.name] = {&t, 0, t.num_rows()};
      return;
    }
    if (const auto expert = parse_expert_name(p.name)) {
      const bool down = expert->matrix == "w2";
      const std::string fused = expert->moe + ".experts." + (down ? "down" : "gate_up");
      if (undecodable_.contains(fused)) return;
      const auto fused_it = encoded_.find(fused);
      if (fused_it != encoded_.end()) {
        const EncodedTensor& t = fused_it->second;
        const std::vector<int64_t> shape = down ? std::vector{E, D, I} : std::vector{E, 2 * I, D};
        if (used.insert(fused).second && t.shape != shape) {
          problems_.push_back(str_cat(t.weight.describe(), " must decode to ",
                                      shape_to_string(shape), ", got ", shape_to_string(t.shape)));
        }
        const int64_t rows = down ? D : I;
        const int64_t first = expert->expert * shape[1] + (expert->matrix == "w3" ? I : 0);
        sources_[p.name] = {&t, first, rows};
        return;
      }
    }
    if (undecodable_.contains(p.name)) return;
    problems_.push_back(str_cat("tensor ", p.name, " ", shape_to_string(p.shape), " is missing"));
  });
  for (const auto& [official, t] : encoded_) {
    if (!used.contains(official)) problems_.push_back(t.weight.describe() + " is not expected");
  }
}

const ModelTensors::Source& ModelTensors::source(const std::string& official) const {
  const auto it = sources_.find(official);
  FATHOM_ASSERT(it != sources_.end(), official);
  return it->second;
}

}  // namespace fathom
