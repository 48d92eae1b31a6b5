// In which number formats a model computes (docs/numerics.md lists every rounding point).
#pragma once

namespace fathom {

enum class Precision {
  kFp32,        // nothing is rounded on the way
  kParityBf16,  // BF16 operands, activations and caches; sums in fp32
  kParityFp8,   // as kParityBf16, with FP8 blocks for the large products and the caches
};

inline const char* precision_name(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return "fp32";
    case Precision::kParityBf16:
      return "parity-bf16";
    case Precision::kParityFp8:
      return "parity-fp8";
  }
  return "";
}

}  // namespace fathom
