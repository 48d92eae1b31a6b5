#include "fathom/checkpoint/inspect_diff.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <span>

#include "fathom/base/error.h"
#include "fathom/checkpoint/inspect_tensors.h"
#include "fathom/checkpoint/names.h"
#include "fathom/checkpoint/official_tensors.h"
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

// One side of a comparison, by the names to compare by.
struct Side {
  std::map<std::string, ListedTensor> tensors;
  std::map<std::string, std::string> shown;  // what a tensor is called in its files
  std::function<std::span<const uint8_t>(const std::string&)> read;
};

Side side_of(InspectTensors& tensors, bool rename) {
  Side side;
  auto names = names_of(tensors, rename);
  for (const auto& [name, stored] : names) side.tensors[name] = tensors.tensors().at(stored);
  side.shown = names;
  side.read = [&tensors, names](const std::string& name) { return tensors.read(names.at(name)); };
  return side;
}

Side side_of(OfficialTensors& tensors) {
  Side side;
  side.tensors = tensors.tensors();
  for (const auto& [name, tensor] : side.tensors) side.shown[name] = name;
  side.read = [&tensors](const std::string& name) { return tensors.read(name); };
  return side;
}

// Null when the two are equal.
Json compare(const std::string& name, const Side& a, const Side& b) {
  const ListedTensor& x = a.tensors.at(name);
  const ListedTensor& y = b.tensors.at(name);
  Json found = {{"name", name}, {"a", describe(x)}, {"b", describe(y)}};
  if (x.shape != y.shape) return found;
  const std::span<const uint8_t> bytes_x = a.read(name), bytes_y = b.read(name);
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

// Whether a difference is one of types alone.
bool has_same_values(const Json& found) {
  return found.contains("num_different") && found["num_different"] == 0 &&
         !found["max_abs_diff"].is_null();
}

void compare_all(const Side& a, const Side& b, bool values_count, Json* diff) {
  int64_t num_equal = 0;
  for (const auto& [name, tensor] : a.tensors) {
    if (!b.tensors.contains(name)) {
      (*diff)["only_in_a"].push_back(a.shown.at(name));
      continue;
    }
    Json found = compare(name, a, b);
    if (found.is_null())
      ++num_equal;
    else if (values_count && has_same_values(found))
      (*diff)["other_type"].push_back({{"name", name}, {"a", found["a"]}, {"b", found["b"]}});
    else
      (*diff)["different"].push_back(std::move(found));
  }
  for (const auto& [name, tensor] : b.tensors)
    if (!a.tensors.contains(name)) (*diff)["only_in_b"].push_back(b.shown.at(name));
  (*diff)["num_equal"] = num_equal;
}

}  // namespace

Json diff_checkpoints(const std::string& path_a, const std::string& path_b) {
  InspectTensors a(path_a), b(path_b);
  Json diff = {{"kind", "diff"}, {"a", path_a}, {"b", path_b}, {"equal", true}, {"num_equal", 0}};
  diff["only_in_a"] = diff["only_in_b"] = diff["different"] = Json::array();
  if (a.is_torch_dist() == b.is_torch_dist()) {
    const bool rename = !a.is_torch_dist() && dialect_of(a) != dialect_of(b);
    compare_all(side_of(a, rename), side_of(b, rename), /*values_count=*/false, &diff);
  } else {
    diff["other_type"] = Json::array();
    const int64_t layers = count_decoder_layers(a.is_torch_dist() ? a : b);
    OfficialTensors official_a(&a, layers), official_b(&b, layers);
    compare_all(side_of(official_a), side_of(official_b), /*values_count=*/true, &diff);
  }
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
  const Json other_type = diff.value("other_type", Json::array());
  for (const Json& t : other_type)
    text += str_cat(t["name"].get<std::string>(), ": ", type_text(t["a"]), " and ",
                    type_text(t["b"]), ", the same values\n");
  text += str_cat(diff["num_equal"].dump(), " tensors are equal, ",
                  other_type.empty() ? "" : str_cat(other_type.size(), " in another type, "),
                  diff["different"].size(), " differ, ", diff["only_in_a"].size(), " only in ", a,
                  ", ", diff["only_in_b"].size(), " only in ", b, "\n");
  return text + (diff["equal"].get<bool>() ? "equal\n" : "different\n");
}

}  // namespace fathom
