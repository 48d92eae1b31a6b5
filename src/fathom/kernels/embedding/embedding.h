// Token embedding lookup and its gradient. The table is row-major [vocab, D].
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

/// out[t] = table[ids[t]], repeated `copies` times along a new axis: out [T, copies, D].
void embedding_fwd(const ExecContext& ctx, const float* table, const int32_t* ids, int64_t T,
                   int64_t D, int64_t copies, float* out);

/// dtable[ids[t]] += Σ_copies dout[t, copy] (copies upwards), tokens in packed order, continuing
/// from the values in dtable. dout [T, copies, D].
void embedding_bwd(const ExecContext& ctx, const float* dout, const int32_t* ids, int64_t T,
                   int64_t D, int64_t copies, float* dtable);

}  // namespace fathom
