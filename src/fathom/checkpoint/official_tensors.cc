#include "fathom/checkpoint/official_tensors.h"

#include <algorithm>
#include <cstdlib>

#include "fathom/base/error.h"
#include "fathom/base/thread_pool.h"
#include "fathom/checkpoint/megatron_names.h"
#include "fathom/checkpoint/names.h"

namespace fathom {
namespace {

constexpr std::string_view kSharedFc1 = ".mlp.shared_experts.linear_fc1.weight";
constexpr std::string_view kExpertsFc1 = ".mlp.experts.experts.linear_fc1.weight";
constexpr std::string_view kExpertsFc2 = ".mlp.experts.experts.linear_fc2.weight";

bool is_quantised(const StoredTensor& tensor) {
  const std::optional<DType> dtype = tensor.entry->type->dtype;
  return dtype == DType::kF8E4M3 || dtype == DType::kI8 || dtype == DType::kU8;
}

int64_t count_bytes(DType dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = dtype_size(dtype);
  for (const int64_t d : shape) bytes *= d;
  return bytes;
}

ListedTensor list(DType dtype, const std::vector<int64_t>& shape) {
  return {std::string(dtype_name(dtype)), dtype, shape, count_bytes(dtype, shape)};
}

// The official name of a key; of a foreign one the key itself.
std::string official_or_same(const std::string& key, int64_t expert, bool up_half) {
  try {
    return official_name(key, expert, up_half);
  } catch (const UserError&) {
    return key;
  }
}

}  // namespace

int64_t count_decoder_layers(const InspectTensors& torch_dist) {
  constexpr std::string_view kPrefix = "decoder.layers.";
  int64_t layers = 0;
  for (const auto& [key, tensor] : torch_dist.tensors()) {
    if (!key.starts_with(kPrefix)) continue;
    layers = std::max<int64_t>(layers, std::atoll(key.c_str() + kPrefix.size()) + 1);
  }
  return layers;
}

OfficialTensors::OfficialTensors(InspectTensors* tensors, int64_t num_layers) : from_(tensors) {
  if (!tensors->is_torch_dist()) {
    add_safetensors(num_layers);
    return;
  }
  for (const auto& [key, stored] : tensors->tensors()) add_stored(key, stored);
}

void OfficialTensors::add(const std::string& name, ListedTensor listed, Piece piece) {
  const auto [it, fresh] = pieces_.emplace(name, std::move(piece));
  FATHOM_CHECK(fresh, from_->path(), ": ", it->second.stored, " and another tensor are both ", name,
               "\n  fix: fetch or convert this checkpoint again");
  listed_.emplace(name, std::move(listed));
}

void OfficialTensors::add_stored(const std::string& key, const ListedTensor& stored) {
  const auto add_box = [&](int64_t expert, bool up_half, std::vector<int64_t> offsets,
                           std::vector<int64_t> sizes) {
    std::vector<int64_t> shape(sizes.end() - std::min<ptrdiff_t>(2, std::ssize(sizes)),
                               sizes.end());
    add(official_or_same(key, expert, up_half), list(*stored.known, shape),
        {key, std::move(offsets), std::move(sizes), nullptr, 0});
  };
  const std::vector<int64_t>& shape = stored.shape;
  const bool fc1 = key.ends_with(kExpertsFc1), fc2 = key.ends_with(kExpertsFc2);
  if (!key.starts_with("optimizer.") && (fc1 || fc2) && shape.size() == 3) {
    for (int64_t e = 0; e < shape[0]; ++e) {
      const int64_t rows = fc1 ? shape[1] / 2 : shape[1];
      add_box(e, false, {e, 0, 0}, {1, rows, shape[2]});
      if (fc1) add_box(e, true, {e, rows, 0}, {1, shape[1] - rows, shape[2]});
    }
  } else if (!key.starts_with("optimizer.") && key.ends_with(kSharedFc1) && shape.size() == 2) {
    add_box(0, false, {0, 0}, {shape[0] / 2, shape[1]});
    add_box(0, true, {shape[0] / 2, 0}, {shape[0] - shape[0] / 2, shape[1]});
  } else {
    add(official_or_same(key, 0, false), stored,
        {key, std::vector<int64_t>(shape.size(), 0), shape, nullptr, 0});
  }
}

void OfficialTensors::add_encoded(const std::string& official, bool is_fused,
                                  const EncodedTensor& tensor) {
  const auto shared = std::make_shared<const EncodedTensor>(tensor);
  const std::string& stored = tensor.weight.name();
  if (!is_fused || tensor.shape.size() != 3) {
    add(official, list(tensor.dtype, tensor.shape), {stored, {}, {}, shared, 0});
    return;
  }
  const size_t leaf = official.rfind('.');  // "<moe>.experts.gate_up", "<moe>.experts.down"
  const std::string experts = official.substr(0, leaf + 1);
  const bool down = official.substr(leaf + 1) == "down";
  const int64_t rows = tensor.shape[1], cols = tensor.shape[2];
  for (int64_t e = 0; e < tensor.shape[0]; ++e) {
    const auto add_rows = [&](const char* matrix, int64_t first, int64_t count) {
      add(str_cat(experts, e, ".", matrix, ".weight"), list(tensor.dtype, {count, cols}),
          {stored, {}, {}, shared, e * rows + first});
    };
    if (down) {
      add_rows("w2", 0, rows);
    } else {
      add_rows("w1", 0, rows / 2);
      add_rows("w3", rows / 2, rows - rows / 2);
    }
  }
}

void OfficialTensors::add_safetensors(int64_t num_layers) {
  std::map<std::string, const StoredTensor*> scales;
  for (const auto& [name, tensor] : from_->shards()->tensors()) {
    const TensorName parsed = parse_tensor_name(name, num_layers);
    if (parsed.is_scale) scales[parsed.official] = &tensor;
  }
  for (const auto& [name, tensor] : from_->shards()->tensors()) {
    const TensorName parsed = parse_tensor_name(name, num_layers);
    // A scale beside a weight that needs none is one that a repack has forgotten.
    if (parsed.is_scale || is_shared_copy(parsed.official)) continue;
    const auto scale = scales.find(parsed.official);
    if (scale == scales.end() && is_quantised(tensor)) {
      add(parsed.official, from_->tensors().at(name), {name, {}, {}, nullptr, 0});
    } else if (tensor.entry->type->dtype) {
      const StoredTensor* companion = is_quantised(tensor) ? scale->second : nullptr;
      add_encoded(parsed.official, parsed.is_fused, identify_encoding(tensor, companion));
    } else {
      add(parsed.official, from_->tensors().at(name), {name, {}, {}, nullptr, 0});
    }
  }
}

std::span<const uint8_t> OfficialTensors::read(const std::string& name) {
  const Piece& piece = pieces_.at(name);
  const ListedTensor& listed = listed_.at(name);
  if (!from_->is_torch_dist() && !piece.encoded) return from_->read(piece.stored);
  held_.resize(static_cast<size_t>(listed.num_bytes));
  if (from_->is_torch_dist()) {
    from_->reader()->read_box(piece.stored, piece.offsets, piece.sizes, held_.data());
    return held_;
  }
  ThreadPool one(1);
  const int64_t cols = piece.encoded->num_cols();
  const int64_t rows = cols == 0 ? 0 : listed.num_bytes / dtype_size(*listed.known) / cols;
  decode_rows({&one, detect_cpu_isa()}, *piece.encoded, piece.first_row, piece.first_row + rows,
              held_.data());
  return held_;
}

}  // namespace fathom
