// What a subcommand computes on: its thread pool, instruction set and device, from the options.
#pragma once

#include <memory>

#include "fathom/base/device.h"
#include "fathom/base/exec_context.h"
#include "fathom/base/thread_pool.h"
#include "fathom/config/options.h"
#include "fathom/model/weights.h"

namespace fathom {

class Execution {
 public:
  /// Errors: ConfigError when --cpu-kernels names what this CPU does not have; UserError when
  /// --device names one that cannot be used.
  explicit Execution(const config::RuntimeOptions& options);
  const ExecContext& context() const { return context_; }

 private:
  ThreadPool threads_;
  std::unique_ptr<Device> device_;  // null: the CPU
  ExecContext context_;
};

/// Puts loaded weights where the context computes, in the mode that the options ask for.
/// Errors: UserError when the model has no form in it.
Weights in_precision(const ExecContext& ctx, Weights weights, const config::Options& options);

/// Cores that this process may run on.
int num_usable_cores();
/// Those that it takes when --threads does not say: its part of them, beside other ranks.
int num_default_threads();

}  // namespace fathom
