// Hashes: SHA-256 for files and configurations, a 64-bit mix for seeds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

/// Lower-case hexadecimal, 64 characters.
std::string sha256_hex(std::string_view bytes);

/// A good 64-bit mix of two words (two rounds of SplitMix64 finalisation). Part of the sampling
/// contract: request seeds are made with it, so it may not change.
constexpr uint64_t mix64(uint64_t a, uint64_t b) {
  uint64_t z = a + 0x9E3779B97F4A7C15ull * (b + 1);
  for (int round = 0; round < 2; ++round) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    z += b;
  }
  return z;
}

}  // namespace fathom
