// The two builds of indexer_cpu.cc.
#pragma once

#include <cstdint>

#include "fathom/kernels/indexer/indexer.h"

namespace fathom {

/// Entries that one call of indexer_score_entries scores at most.
constexpr int64_t kIndexerEntryBlock = 256;

#define FATHOM_DECLARE_INDEXER(isa)                                                          \
  namespace isa {                                                                            \
  /* scores[w - begin] of query t for entries w in [begin, end), at most kIndexerEntryBlock. \
     decoded: room for as many keys [di] when they are not kF32. */                          \
  void indexer_score_entries(const IndexerTopk& p, int64_t t, int64_t begin, int64_t end,    \
                             float* decoded, float* scores);                                 \
  }
FATHOM_DECLARE_INDEXER(avx2)
FATHOM_DECLARE_INDEXER(avx512)
#undef FATHOM_DECLARE_INDEXER

}  // namespace fathom
