// Rounding of vectors to BF16. For _cpu.cc files.
#pragma once

#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {

/// Each lane rounded to BF16, to nearest even, as fp32. Finite values beyond the largest give
/// infinity; NaN gives a quiet NaN: the bits of formats.h round_to_bf16.
inline F16 round_to_bf16(F16 x) {
  const I16 b = bits(x);
  const I16 odd = bit_and(shift_right<16>(b), set1_int(1));
  const I16 up = add(add(b, set1_int(0x7FFF)), odd);
  const I16 quiet = bit_or(b, set1_int(0x00400000));
  const F16 rounded = select(is_nan(x), from_bits(quiet), from_bits(up));
  return from_bits(bit_and(bits(rounded), set1_int(static_cast<int32_t>(0xFFFF0000u))));
}

}  // namespace FATHOM_ISA
}  // namespace fathom
