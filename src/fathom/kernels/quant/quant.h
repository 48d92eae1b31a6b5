// Rounding to smaller formats and back: what the precision modes do between the products. Results
// are values of the smaller format held in fp32. Every element, or block of elements, is rounded by
// itself, so nothing else (rows at a time, threads, instruction set) changes a bit.
//
// NaN stays NaN. In the backward pass all of these are straight-through: the gradient passes
// unchanged.
#pragma once

#include <cstdint>

#include "fathom/base/exec_context.h"
#include "fathom/kernels/linear/panel.h"

namespace fathom {

/// out [n] = x [n] rounded to BF16, to nearest even. out may be x.
void round_bf16(const ExecContext& ctx, const float* x, int64_t n, float* out);

/// The first n channels of each row through FP8 blocks: per `block` channels (the last may be
/// short), scale = fp8_power_scale(max(amax, 1e-4)), each x rounded to E4M3 of x / scale and
/// multiplied back (exact). An infinity makes its block NaN. Channels beyond n are not touched; in
/// place, or out in other memory.
struct Fp8Rows {
  const float* x;
  int64_t x_stride;  // floats between rows
  float* out;
  int64_t out_stride;
  int64_t num_rows, n, block;
};
void simulate_fp8_rows(const ExecContext& ctx, const Fp8Rows& p);

/// y = x H_n / sqrt(n) for each row of n = 2^k channels, Sylvester order, then rounded to BF16:
/// butterflies of stride 1, 2, 4, ... in fp32, then one product with fp32(1 / sqrt(n)). In place.
/// Errors: InternalError when n is no power of two.
void hadamard_rows_bf16(const ExecContext& ctx, int64_t num_rows, int64_t n, float* x);

/// A weight matrix through FP8 blocks of 128 x 128: the values that quantise_fp8 with E8M0 scales
/// (numerics/formats.h) stands for. One block of `layout` only. Runs on the calling thread.
/// Errors: UserError that names the element when one is not finite.
void simulate_fp8_panels(const float* panels, const PanelLayout& layout, float* out);

/// The same where the context computes: panels on the CPU, row-major on a device, where an element
/// that is not finite is told as a device fault.
void simulate_fp8_matrix(const ExecContext& ctx, const float* w, const PanelLayout& layout,
                         float* out);

/// Round of a whole parameter on the calling thread, the bits of round_bf16.
void round_bf16_serial(const float* x, int64_t n, float* out);

}  // namespace fathom
