#include "fathom/kernels/compressor/compressor_ref.h"

#include <algorithm>
#include <cmath>

namespace fathom {
namespace {

/// Where the slots of an entry and channel lie in v and g, and their weights.
struct Slots {
  std::vector<size_t> at, ape_at;
  std::vector<double> weight;
  double entry = 0;
};

Slots pool(const CompressorRef& p, int64_t entry, int64_t channel) {
  const int64_t row = p.coff * p.c;
  Slots slots;
  const auto add = [&](int64_t t, int64_t column) {
    slots.at.push_back(static_cast<size_t>(t * row + column));
    slots.ape_at.push_back(static_cast<size_t>(t % p.ratio * row + column));
  };
  if (p.coff == 2 && entry > 0) {
    for (int64_t j = 0; j < p.ratio; ++j) add((entry - 1) * p.ratio + j, channel);
  }
  for (int64_t j = 0; j < p.ratio; ++j) add(entry * p.ratio + j, channel + (p.coff - 1) * p.c);
  double max = -INFINITY, sum = 0;
  for (size_t j = 0; j < slots.at.size(); ++j) {
    max = std::max(max, p.g[slots.at[j]] + p.ape[slots.ape_at[j]]);
  }
  for (size_t j = 0; j < slots.at.size(); ++j) {
    slots.weight.push_back(std::exp(p.g[slots.at[j]] + p.ape[slots.ape_at[j]] - max));
    sum += slots.weight.back();
  }
  for (size_t j = 0; j < slots.at.size(); ++j) {
    slots.weight[j] /= sum;
    slots.entry += slots.weight[j] * p.v[slots.at[j]];
  }
  return slots;
}

int64_t num_entries(const CompressorRef& p) {
  return static_cast<int64_t>(p.v.size()) / (p.coff * p.c) / p.ratio;
}

}  // namespace

std::vector<double> compressor_ref(const CompressorRef& p) {
  std::vector<double> entries;
  for (int64_t e = 0; e < num_entries(p); ++e) {
    for (int64_t channel = 0; channel < p.c; ++channel) {
      entries.push_back(pool(p, e, channel).entry);
    }
  }
  return entries;
}

CompressorGradsRef compressor_bwd_ref(const CompressorRef& p, const std::vector<double>& dentries) {
  CompressorGradsRef grads{std::vector<double>(p.v.size()), std::vector<double>(p.v.size()),
                           std::vector<double>(p.ape.size())};
  for (int64_t e = 0; e < num_entries(p); ++e) {
    for (int64_t channel = 0; channel < p.c; ++channel) {
      const Slots slots = pool(p, e, channel);
      const double de = dentries[static_cast<size_t>(e * p.c + channel)];
      for (size_t j = 0; j < slots.at.size(); ++j) {
        const double dv = slots.weight[j] * de;
        const double dg = dv * (p.v[slots.at[j]] - slots.entry);
        grads.dv[slots.at[j]] += dv;
        grads.dg[slots.at[j]] += dg;
        grads.dape[slots.ape_at[j]] += dg;
      }
    }
  }
  return grads;
}

}  // namespace fathom
