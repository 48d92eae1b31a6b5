// hyper_connection.h on a CUDA device, with the bits of the CPU. fn is row-major.
#pragma once

#include "fathom/kernels/hyper_connection/hyper_connection.h"

namespace fathom::cuda {

void hc_pre_fwd(Device& device, const HcShape& s, const HcWeights& w, const float* x, float* y,
                float* post, float* comb);
void hc_post_fwd(Device& device, const HcShape& s, const float* x, const float* f,
                 const float* post, const float* comb, float* out);
void hc_post_bwd(Device& device, const HcShape& s, const float* x, const float* f,
                 const float* post, const float* comb, const float* dout, float* df, float* dpost,
                 float* dcomb, float* dx);
void hc_pre_bwd(Device& device, const HcShape& s, const HcWeights& w, const float* x,
                const float* dy, const float* dpost, const float* dcomb, float* dx,
                const HcGrads& grads);
void hc_head_fwd(Device& device, const HcShape& s, const HcWeights& w, const float* x, float* h);
void hc_head_bwd(Device& device, const HcShape& s, const HcWeights& w, const float* x,
                 const float* dh, float* dx, const HcGrads& grads);

}  // namespace fathom::cuda
