// Random initialisation of a model (supervised.h: init_random_weights).
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include "fathom/base/hash.h"
#include "fathom/numerics/scalar_math.h"
#include "fathom/train/supervised.h"

namespace fathom {
namespace {

/// Uniform words from (seed, index): a counter, so that order of use does not matter.
uint64_t word_at(uint64_t seed, uint64_t index) { return mix64(seed, index); }

/// Box-Muller over two uniforms of one word; our own log and cosine, so bits are the same
/// everywhere.
float normal_at(uint64_t seed, uint64_t index) {
  const uint64_t word = word_at(seed, index);
  const double u1 = (static_cast<double>(word >> 32) + 0.5) * 0x1p-32;
  const double u2 = (static_cast<double>(word & 0xFFFFFFFFu) + 0.5) * 0x1p-32;
  double sine, cosine;
  scalar_sin_cos(6.283185307179586 * u2, &sine, &cosine);
  return std::sqrt(-2.0f * scalar_log(static_cast<float>(u1))) * static_cast<float>(cosine);
}

float initial_std(const Parameter& p) {
  if (p.name == "embed.weight") return 0.5f;
  if (p.name.ends_with("_fn")) return 0.02f;
  const float fan_in = 1.0f / std::sqrt(static_cast<float>(p.global_shape.back()));
  const bool is_output =
      p.name.ends_with(".wo_b.weight") || p.name.ends_with(".w2.weight") || p.name == "head.weight";
  return is_output ? 0.5f * fan_in : fan_in;
}

float initial_constant(const Parameter& p) {
  const bool is_one = p.name.ends_with("norm.weight") || p.name.ends_with("_scale");
  return is_one ? 1.0f : 0.0f;
}

/// Each row of tid2eid: distinct experts, by a seeded Fisher-Yates.
void init_table(Parameter& p, int64_t num_experts, uint64_t seed) {
  const int64_t rows = p.shape[0], slots = p.shape[1];
  std::vector<int32_t> experts(static_cast<size_t>(num_experts));
  for (int64_t r = 0; r < rows; ++r) {
    std::iota(experts.begin(), experts.end(), 0);
    for (int64_t j = 0; j < slots; ++j) {
      const auto left = static_cast<uint64_t>(num_experts - j);
      const auto k = static_cast<size_t>(
          static_cast<uint64_t>(j) + word_at(seed, static_cast<uint64_t>(r * slots + j)) % left);
      std::swap(experts[static_cast<size_t>(j)], experts[k]);
      p.master.i32()[r * slots + j] = experts[static_cast<size_t>(j)];
    }
  }
}

}  // namespace

void init_random_weights(Weights& weights, uint64_t seed) {
  // A rank draws its part of what one rank would draw: tensors are numbered in the whole model.
  std::map<std::string, uint64_t> numbers;
  const Weights whole = make_weights(weights.config);
  for_each_parameter(whole, [&](const Parameter& p) { numbers.emplace(p.name, numbers.size()); });
  for_each_parameter(weights, [&](Parameter& p) {
    const uint64_t tensor_seed = mix64(seed, numbers.at(p.name));
    p.alloc();
    if (p.kind == ParameterKind::kTable) {
      init_table(p, weights.config.n_routed_experts, tensor_seed);
    } else {
      std::vector<float> values(static_cast<size_t>(p.numel()), initial_constant(p));
      if (p.kind == ParameterKind::kMatrix || p.name == "embed.weight") {
        const float scale = initial_std(p);
        p.for_each_global_index([&](int64_t i, int64_t global) {
          values[static_cast<size_t>(i)] =
              scale * normal_at(tensor_seed, static_cast<uint64_t>(global));
        });
      }
      p.set_row_major(values.data());
    }
    p.refresh();
  });
}

}  // namespace fathom
