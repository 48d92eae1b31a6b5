// Checked calls of the CUDA runtime. Only for files that are built with the toolkit.
#pragma once

#include <cuda_runtime_api.h>

#include "fathom/base/error.h"

#define FATHOM_CUDA_CHECK(call)                                                                   \
  do {                                                                                            \
    const cudaError_t fathom_error = (call);                                                      \
    FATHOM_ASSERT(fathom_error == cudaSuccess, #call, ": ", cudaGetErrorName(fathom_error), ": ", \
                  cudaGetErrorString(fathom_error));                                              \
  } while (false)
