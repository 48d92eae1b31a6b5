// Rows of floats moved and added between the other kernels: rows picked and put back, one row
// added to all streams of its token, streams summed.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"

namespace fathom {

/// out[r] = x[rows[r]]. @param rows [R]; x and out have rows of `width` floats.
void gather_rows(const ExecContext& ctx, const float* x, const int64_t* rows, int64_t R,
                 int64_t width, float* out);

/// out[rows[r]] += in[r], r upwards; a row may be named twice.
void add_rows(const ExecContext& ctx, const float* in, const int64_t* rows, int64_t R,
              int64_t width, float* out);

/// streams[t, j] += e[t]. @param e [T, D]; streams [T, M, D]
void add_to_streams(const ExecContext& ctx, int64_t T, int64_t M, int64_t D, const float* e,
                    float* streams);

/// out[t] = ((0 + d[t, 0]) + d[t, 1]) + ... . @param d [T, M, D]; out [T, D]
void sum_streams(const ExecContext& ctx, int64_t T, int64_t M, int64_t D, const float* d,
                 float* out);

/// x[i] *= factor for i < n.
void scale_elements(const ExecContext& ctx, int64_t n, float factor, float* x);

}  // namespace fathom
