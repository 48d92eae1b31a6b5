#include "fathom/kernels/indexer/indexer_cpu.h"

#include "fathom/kernels/quant/entry_decode.h"
#include "fathom/kernels/sparse_attention/dots.h"

namespace fathom {
namespace FATHOM_ISA {

void indexer_score_entries(const IndexerTopk& p, int64_t t, int64_t begin, int64_t end,
                           float* decoded, float* scores) {
  const int64_t count = end - begin;
  const KeyPages& pages = p.segment_pages[p.segment_of[t]];
  const float* keys[kIndexerEntryBlock];
  int64_t page = begin / pages.entries_per_page, in_page = begin % pages.entries_per_page;
  for (int64_t i = 0; i < count; ++i) {
    const void* entry =
        static_cast<const uint8_t*>(pages.pages[page]) + in_page * pages.format.num_bytes;
    keys[i] = read_entry(pages.format, entry, decoded + i * p.di);
    if (++in_page == pages.entries_per_page) ++page, in_page = 0;
  }
  alignas(64) float products[kIndexerEntryBlock];
  for (int64_t i = 0; i < count; ++i) scores[i] = 0;
  for (int64_t h = 0; h < p.Hi; ++h) {
    dots(p.q + (t * p.Hi + h) * p.di, keys, count, p.di, products);
    const F16 weight = set1(p.weights[t * p.Hi + h]);
    // max(0, x) is x when x is NaN, so a NaN reaches the score.
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      store(scores + i, fma(weight, max(zero(), load(products + i)), load(scores + i)));
    }
    if (i < count) {
      const int64_t n = count - i;
      const F16 relu = max(zero(), load_first(products + i, n));
      store_first(scores + i, fma(weight, relu, load_first(scores + i, n)), n);
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
