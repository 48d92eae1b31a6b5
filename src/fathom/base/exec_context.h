// What a computation runs on. Passed to every kernel; there is no global state.
#pragma once

#include "fathom/base/error.h"
#include "fathom/base/thread_pool.h"

namespace fathom {

class Device;  // device.h

enum class CpuIsa { kAvx2, kAvx512 };

/// The widest instruction set that this CPU has and the program was built for.
/// Errors: UserError on a CPU without AVX2 and FMA.
CpuIsa detect_cpu_isa();

struct ExecContext {
  ThreadPool* threads;  // not owned
  CpuIsa isa;           // results are the same bits for either
  /// Not owned. Null: kernels run on the CPU and take memory of the host. Otherwise all their
  /// arrays are on this device, and they return before the work is done.
  Device* device = nullptr;
};

}  // namespace fathom

/// Calls avx512::fn(...) or avx2::fn(...): the two builds of a kernel's _cpu.cc.
#define FATHOM_CPU_DISPATCH(ctx, fn, ...)                                     \
  ((ctx).isa == ::fathom::CpuIsa::kAvx512 ? ::fathom::avx512::fn(__VA_ARGS__) \
                                          : ::fathom::avx2::fn(__VA_ARGS__))

/// Calls cuda::fn(device, ...) and returns, when the context has a device.
#if FATHOM_WITH_CUDA
#define FATHOM_DEVICE_DISPATCH(ctx, fn, ...)                                            \
  do {                                                                                  \
    if ((ctx).device != nullptr) return ::fathom::cuda::fn(*(ctx).device, __VA_ARGS__); \
  } while (false)
#else
#define FATHOM_DEVICE_DISPATCH(ctx, fn, ...) \
  FATHOM_ASSERT((ctx).device == nullptr, #fn ": this program was built without CUDA")
#endif
