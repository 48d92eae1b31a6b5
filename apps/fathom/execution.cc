#include "execution.h"

#include <sched.h>

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/config/derived.h"
#include "fathom/config/parse.h"
#include "fathom/dist/rank_environment.h"

namespace fathom {
namespace {

CpuIsa choose_isa(config::CpuKernels kernels) {
  const CpuIsa widest = detect_cpu_isa();
  switch (kernels) {
    case config::CpuKernels::kAuto:
      return widest;
    case config::CpuKernels::kAvx2:
      return CpuIsa::kAvx2;
    case config::CpuKernels::kAvx512:
      if (widest != CpuIsa::kAvx512)
        throw ConfigError(
            "--cpu-kernels avx512: this CPU has no AVX-512; leave the option out, or "
            "give avx2 (results are the same)");
      return CpuIsa::kAvx512;
  }
  return widest;
}

}  // namespace

Weights in_precision(const ExecContext& ctx, Weights weights, const config::Options& options) {
  move_weights(ctx, &weights);
  set_precision(ctx, &weights, config::derive(options).train_precision);
  return weights;
}

int num_usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

int num_default_threads() {
  // The ranks of a machine share its cores.
  const int num_ranks = dist::rank_environment(config::current_environment()).local_size;
  return std::max(1, num_usable_cores() / num_ranks);
}

Execution::Execution(const config::RuntimeOptions& options)
    : threads_(static_cast<int>(options.threads.value_or(num_default_threads()))),
      device_(options.device == config::DeviceKind::kCuda ? open_cuda_device() : nullptr),
      context_{&threads_, choose_isa(options.cpu_kernels), device_.get()} {
  if (device_ != nullptr) log_info("device: ", device_->name());
}

}  // namespace fathom
