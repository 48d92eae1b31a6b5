// rows.h on a CUDA device.
#pragma once

#include "fathom/kernels/rows/rows.h"

namespace fathom::cuda {

void gather_rows(Device& device, const float* x, const int64_t* rows, int64_t R, int64_t width,
                 float* out);
void add_rows(Device& device, const float* in, const int64_t* rows, int64_t R, int64_t width,
              float* out);
void add_to_streams(Device& device, int64_t T, int64_t M, int64_t D, const float* e,
                    float* streams);
void sum_streams(Device& device, int64_t T, int64_t M, int64_t D, const float* d, float* out);
void scale_elements(Device& device, int64_t n, float factor, float* x);

}  // namespace fathom::cuda
