#include "fathom/rollout/engine_options.h"

#include <algorithm>

#include "fathom/config/derived.h"

namespace fathom {

EngineOptions engine_options(const config::Options& options) {
  const config::EngineOptions& o = options.engine;
  EngineOptions out;
  out.max_running_requests = o.max_running_requests;
  out.chunked_prefill_size = o.chunked_prefill_size;
  out.page_size = o.page_size.value_or(0);
  out.prefix_cache = !o.disable_radix_cache;
  out.admission =
      o.admission == config::Admission::kWorstCase ? Admission::kWorstCase : Admission::kEstimate;
  out.num_draft_tokens = config::num_guessed_tokens(options);
  // Where the system does not say how much is free, there is no limit.
  out.state_bytes = o.state_memory_bytes.value_or(
      static_cast<int64_t>(o.mem_fraction_static * static_cast<double>(available_memory_bytes())));
  return out;
}

}  // namespace fathom
