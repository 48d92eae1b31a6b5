// Tensor maps for the bulk tensor copy engine, made on the host and passed to kernels by value.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fathom::sm90 {

/// A row-major matrix [rows, cols] of elements of `elem_bytes` (2: bf16, 1: bytes), rows `ld`
/// elements apart, read in boxes of box_rows x box_cols (box_cols * elem_bytes = 128), swizzled by
/// 128 bytes. What lies outside reads as zero.
/// Requires: ptr on 16 bytes, ld * elem_bytes a multiple of 16, box_rows <= 256.
/// Errors: cudaErrorInvalidValue when the driver refuses, cudaErrorNotSupported without a driver.
cudaError_t make_tensor_map_2d(CUtensorMap* map, const void* ptr, int64_t rows, int64_t cols,
                               int64_t ld, int elem_bytes, int box_rows, int box_cols);

}  // namespace fathom::sm90
