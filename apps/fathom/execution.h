// What a subcommand computes on: its thread pool and instruction set, from the options.
#pragma once

#include "fathom/base/exec_context.h"
#include "fathom/base/thread_pool.h"
#include "fathom/config/options.h"
#include "fathom/model/weights.h"

namespace fathom {

class Execution {
 public:
  /// Errors: ConfigError when --cpu-kernels names what this CPU does not have.
  explicit Execution(const config::RuntimeOptions& options);
  const ExecContext& context() const { return context_; }

 private:
  ThreadPool threads_;
  ExecContext context_;
};

/// Puts loaded weights into the mode that the options ask for.
/// Errors: UserError when the model has no form in it.
Weights in_precision(const ExecContext& ctx, Weights weights, const config::Options& options);

/// Cores that this process may run on.
int num_usable_cores();
/// Those that it takes when --threads does not say: its part of them, beside other ranks.
int num_default_threads();

}  // namespace fathom
