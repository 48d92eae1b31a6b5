#include "fathom/checkpoint/inspect_diff.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/checkpoint/inspect_tensors.h"
#include "fathom/checkpoint/names.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

// Official name -> stored name, or stored -> stored when `rename` is off.
using Names = std::map<std::string, std::string>;

NameDialect dialect_of(const InspectTensors& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors.tensors()) names.push_back(name);
  return detect_name_dialect(names);
}

// One past the highest layer number, which is all that renaming asks of a configuration.
int64_t count_layers(const InspectTensors& tensors) {
  int64_t layers = 0;
  for (const auto& [name, tensor] : tensors.tensors()) {
    const size_t at = name.find("layers.");
    if (at == std::string::npos || name.find("mtp") != std::string::npos) continue;
    layers = std::max<int64_t>(layers, std::atoll(name.c_str() + at + 7) + 1);
  }
  return layers;
}

Names names_of(const InspectTensors& tensors, bool rename) {
  Names names;
  const int64_t layers = rename ? count_layers(tensors) : 0;
  for (const auto& [name, tensor] : tensors.tensors()) {
    if (!rename) {
      names.emplace(name, name);
      continue;
    }
    const TensorName parsed = parse_tensor_name(name, layers);
    names.emplace(parsed.is_scale ? parsed.official + " (scale)" : parsed.official, name);
  }
  return names;
}

template <typename T>
T load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Element i as fp64. Exact but for 64-bit integers beyond 2^53.
double element(DType dtype, const uint8_t* bytes, int64_t i) {
  const uint8_t* at = bytes + i * dtype_size(dtype);
  switch (dtype) {
    case DType::kBool:
    case DType::kU8:
      return *at;
    case DType::kI8:
      return load<int8_t>(at);
    case DType::kF8E4M3:
      return e4m3_to_f32(*at);
    case DType::kF8E8M0:
      return e8m0_to_f32(*at);
    case DType::kI16:
      return load<int16_t>(at);
    case DType::kF16:
      return f16_to_f32(load<uint16_t>(at));
    case DType::kBF16:
      return bf16_to_f32(load<uint16_t>(at));
    case DType::kI32:
      return load<int32_t>(at);
    case DType::kF32:
      return load<float>(at);
    case DType::kF64:
      return load<double>(at);
    case DType::kI64:
      return static_cast<double>(load<int64_t>(at));
  }
  return 0;
}

struct Difference {
  int64_t count = 0, first = -1;
  double max_abs = 0;
  bool is_finite = true;
};

void compare_values(const ListedTensor& a, std::span<const uint8_t> bytes_a, const ListedTensor& b,
                    std::span<const uint8_t> bytes_b, Difference* out) {
  const bool same_type = a.dtype == b.dtype;
  const int64_t size = same_type ? dtype_size(*a.known) : 0;
  const int64_t count = a.num_bytes / dtype_size(*a.known);
  for (int64_t i = 0; i < count; ++i) {
    if (same_type && std::memcmp(bytes_a.data() + i * size, bytes_b.data() + i * size,
                                 static_cast<size_t>(size)) == 0)
      continue;
    const double x = element(*a.known, bytes_a.data(), i);
    const double y = element(*b.known, bytes_b.data(), i);
    if (!same_type && (x == y || (std::isnan(x) && std::isnan(y)))) continue;
    if (out->count++ == 0) out->first = i;
    if (std::isnan(x) && std::isnan(y)) continue;  // other bits, no distance
    const double distance = x == y ? 0 : std::fabs(x - y);
    if (std::isfinite(distance))
      out->max_abs = std::max(out->max_abs, distance);
    else
      out->is_finite = false;
  }
}

Json describe(const ListedTensor& t) { return {{"dtype", t.dtype}, {"shape", t.shape}}; }

// Null when the two are equal.
Json compare(const std::string& name, InspectTensors& a, const std::string& name_a,
             InspectTensors& b, const std::string& name_b) {
  const ListedTensor& x = a.tensors().at(name_a);
  const ListedTensor& y = b.tensors().at(name_b);
  Json found = {{"name", name}, {"a", describe(x)}, {"b", describe(y)}};
  if (x.shape != y.shape) return found;
  const std::span<const uint8_t> bytes_x = a.read(name_a), bytes_y = b.read(name_b);
  const bool same_bytes =
      x.dtype == y.dtype && bytes_x.size() == bytes_y.size() &&
      (bytes_x.empty() || std::memcmp(bytes_x.data(), bytes_y.data(), bytes_x.size()) == 0);
  if (same_bytes) return nullptr;
  if (!x.known || !y.known) {
    found["max_abs_diff"] = nullptr;
    return found;
  }
  Difference difference;
  compare_values(x, bytes_x, y, bytes_y, &difference);
  found["num_different"] = difference.count;
  if (difference.count > 0) found["first_different"] = difference.first;
  found["max_abs_diff"] = difference.is_finite ? Json(difference.max_abs) : Json(nullptr);
  return found;
}

std::string type_text(const Json& tensor) {
  return tensor["dtype"].get<std::string>() + " " +
         shape_to_string(tensor["shape"].get<std::vector<int64_t>>());
}

}  // namespace

Json diff_checkpoints(const std::string& path_a, const std::string& path_b) {
  InspectTensors a(path_a), b(path_b);
  FATHOM_CHECK(a.is_torch_dist() == b.is_torch_dist(), path_a, " holds ",
               a.is_torch_dist() ? "torch_dist weights, " : "safetensors, ", path_b,
               b.is_torch_dist() ? " torch_dist weights" : " safetensors",
               "\n  fix: bring both to one form, e.g. with `fathom export-hf`");
  const bool rename = !a.is_torch_dist() && dialect_of(a) != dialect_of(b);
  const Names names_a = names_of(a, rename), names_b = names_of(b, rename);
  Json diff = {{"kind", "diff"}, {"a", path_a}, {"b", path_b}, {"equal", true}, {"num_equal", 0}};
  diff["only_in_a"] = diff["only_in_b"] = diff["different"] = Json::array();
  int64_t num_equal = 0;
  for (const auto& [name, name_a] : names_a) {
    const auto in_b = names_b.find(name);
    if (in_b == names_b.end()) {
      diff["only_in_a"].push_back(name_a);
      continue;
    }
    Json found = compare(name, a, name_a, b, in_b->second);
    if (found.is_null())
      ++num_equal;
    else
      diff["different"].push_back(std::move(found));
  }
  for (const auto& [name, name_b] : names_b)
    if (!names_a.contains(name)) diff["only_in_b"].push_back(name_b);
  diff["num_equal"] = num_equal;
  diff["equal"] =
      diff["only_in_a"].empty() && diff["only_in_b"].empty() && diff["different"].empty();
  return diff;
}

std::string diff_table(const Json& diff) {
  const std::string a = diff["a"], b = diff["b"];
  std::string text;
  for (const auto& [key, path] : {std::pair{"only_in_a", a}, {"only_in_b", b}})
    for (const Json& name : diff[key])
      text += str_cat("only in ", path, ": ", name.get<std::string>(), "\n");
  for (const Json& d : diff["different"]) {
    text += d["name"].get<std::string>() + ": ";
    if (d["a"] == d["b"])
      text += type_text(d["a"]);
    else
      text += type_text(d["a"]) + " and " + type_text(d["b"]);
    if (d.contains("num_different"))
      text += str_cat(", ", d["num_different"].dump(), " elements differ");
    if (d.contains("first_different"))
      text += str_cat(", the first at ", d["first_different"].dump());
    if (d.contains("max_abs_diff"))
      text +=
          str_cat(", largest difference ", d["max_abs_diff"].is_null() ? std::string("not a number")
                                                                       : d["max_abs_diff"].dump());
    text += "\n";
  }
  text += str_cat(diff["num_equal"].dump(), " tensors are equal, ", diff["different"].size(),
                  " differ, ", diff["only_in_a"].size(), " only in ", a, ", ",
                  diff["only_in_b"].size(), " only in ", b, "\n");
  return text + (diff["equal"].get<bool>() ? "equal\n" : "different\n");
}

}  // namespace fathom
