#include "fathom/kernels/embedding/embedding_cpu.h"

#include "fathom/numerics/simd.h"

namespace fathom {
namespace FATHOM_ISA {

void embedding_bwd_columns(const float* dout, const int32_t* ids, int64_t T, int64_t D,
                           int64_t copies, float* dtable, int64_t begin, int64_t end) {
  for (int64_t t = 0; t < T; ++t) {
    const float* g = dout + t * copies * D;
    float* row = dtable + ids[t] * D;
    for (int64_t d = begin; d < end; d += kLanes) {
      const int64_t n = end - d;
      if (n >= kLanes) {
        F16 sum = load(g + d);
        for (int64_t c = 1; c < copies; ++c) sum = add(sum, load(g + c * D + d));
        store(row + d, add(load(row + d), sum));
      } else {
        F16 sum = load_first(g + d, n);
        for (int64_t c = 1; c < copies; ++c) sum = add(sum, load_first(g + c * D + d, n));
        store_first(row + d, add(load_first(row + d, n), sum), n);
      }
    }
  }
}

}  // namespace FATHOM_ISA
}  // namespace fathom
