// What a computation runs on. Passed to every kernel; there is no global state.
#pragma once

#include "fathom/base/thread_pool.h"

namespace fathom {

enum class CpuIsa { kAvx2, kAvx512 };

/// The widest instruction set that this CPU has and the program was built for.
/// Errors: UserError on a CPU without AVX2 and FMA.
CpuIsa detect_cpu_isa();

struct ExecContext {
  ThreadPool* threads;  // not owned
  CpuIsa isa;           // results are the same bits for either
};

}  // namespace fathom

/// Calls avx512::fn(...) or avx2::fn(...): the two builds of a kernel's _cpu.cc.
#define FATHOM_CPU_DISPATCH(ctx, fn, ...)                                     \
  ((ctx).isa == ::fathom::CpuIsa::kAvx512 ? ::fathom::avx512::fn(__VA_ARGS__) \
                                          : ::fathom::avx2::fn(__VA_ARGS__))
