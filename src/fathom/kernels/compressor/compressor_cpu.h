// The two builds of compressor_cpu.cc.
#pragma once

#include <cstdint>

#include "fathom/kernels/compressor/compressor.h"

namespace fathom {

/// Channels that one call handles at most.
constexpr int64_t kCompressorChannels = 16;

#define FATHOM_DECLARE_COMPRESSOR(isa)                                                          \
  namespace isa {                                                                               \
  /* The whole forward of n channels from `channel` on. */                                      \
  void compressor_fwd_channels(const CompressorFwd& p, int64_t channel, int64_t n);             \
  /* dv and dg of the rows that entry `entry` pools, n channels from `channel` on. */           \
  void compressor_bwd_entry(const CompressorBwd& p, int64_t entry, int64_t channel, int64_t n); \
  /* Adds dg of every token to dape, n columns of coff * c from `column` on. */                 \
  void compressor_bwd_ape(const CompressorBwd& p, int64_t column, int64_t n);                   \
  }
FATHOM_DECLARE_COMPRESSOR(avx2)
FATHOM_DECLARE_COMPRESSOR(avx512)
#undef FATHOM_DECLARE_COMPRESSOR

}  // namespace fathom
