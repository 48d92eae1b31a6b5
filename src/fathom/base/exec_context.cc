#include "fathom/base/exec_context.h"

#include "fathom/base/error.h"

namespace fathom {

CpuIsa detect_cpu_isa() {
  __builtin_cpu_init();
  FATHOM_CHECK(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
               "this CPU has no AVX2 with FMA, which fathom needs\n"
               "  fix: run on an x86-64 CPU of 2013 or later (x86-64-v3)");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has_avx512 ? CpuIsa::kAvx512 : CpuIsa::kAvx2;
}

}  // namespace fathom
