#include "fathom/kernels/embedding/embedding.h"

#include <algorithm>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/kernels/embedding/embedding_cpu.h"
#include "fathom/kernels/embedding/embedding_cuda.h"

namespace fathom {
namespace {

constexpr int64_t kTokenGrain = 64;

// The table's length is the caller's knowledge: ids are held against the vocabulary where they come
// in.
void check_ids(const int32_t* ids, int64_t T) {
  for (int64_t t = 0; t < T; ++t) {
    FATHOM_CHECK(ids[t] >= 0, "embedding: token id ", ids[t], " at position ", t, " is negative");
  }
}

}  // namespace

void embedding_fwd(const ExecContext& ctx, const float* table, const int32_t* ids, int64_t T,
                   int64_t D, int64_t copies, float* out) {
  FATHOM_DEVICE_DISPATCH(ctx, embedding_fwd, table, ids, T, D, copies, out);
  check_ids(ids, T);
  const size_t row_bytes = static_cast<size_t>(D) * sizeof(float);
  ctx.threads->parallel_for(T, kTokenGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t c = 0; c < copies; ++c) {
        std::memcpy(out + (t * copies + c) * D, table + ids[t] * D, row_bytes);
      }
    }
  });
}

void embedding_bwd(const ExecContext& ctx, const float* dout, const int32_t* ids, int64_t T,
                   int64_t D, int64_t copies, float* dtable) {
  FATHOM_ASSERT(copies >= 1, "copies = ", copies);
  FATHOM_DEVICE_DISPATCH(ctx, embedding_bwd, dout, ids, T, D, copies, dtable);
  check_ids(ids, T);
  if (T == 0) return;
  // Threads own columns, so that every element of the table sees its tokens in order.
  const int64_t threads = ctx.threads->num_threads();
  const int64_t grain = std::max<int64_t>(64, (D / threads + 15) / 16 * 16);
  ctx.threads->parallel_for(D, grain, [&](int64_t begin, int64_t end) {
    FATHOM_CPU_DISPATCH(ctx, embedding_bwd_columns, dout, ids, T, D, copies, dtable, begin, end);
  });
}

}  // namespace fathom
