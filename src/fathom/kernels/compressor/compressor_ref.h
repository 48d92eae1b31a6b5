// The equations of compressor.h in fp64, for a whole segment from position 0.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

struct CompressorRef {
  int64_t ratio, coff, c;
  std::vector<double> v, g;  // [T, coff * c], g without ape
  std::vector<double> ape;   // [ratio, coff * c]
};

/// Entries [T / ratio, c]: a softmax over the slots of each entry and channel.
std::vector<double> compressor_ref(const CompressorRef& p);

struct CompressorGradsRef {
  std::vector<double> dv, dg, dape;
};
CompressorGradsRef compressor_bwd_ref(const CompressorRef& p, const std::vector<double>& dentries);

}  // namespace fathom
