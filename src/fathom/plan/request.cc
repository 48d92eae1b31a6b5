#include "fathom/plan/request.h"

#include <algorithm>

namespace fathom {

int PlanRequest::num_micro_batches() const {
  const int64_t per_rank = (batch.samples + layout.mesh.dp - 1) / layout.mesh.dp;
  const int64_t each = std::max<int64_t>(1, batch.samples_per_micro_batch);
  return static_cast<int>((per_rank + each - 1) / each);
}

int64_t PlanRequest::micro_batch_tokens() const {
  return batch.samples_per_micro_batch * batch.sequence_tokens;
}

int64_t PlanRequest::micro_batch_rows() const {
  return batch.samples_per_micro_batch * batch.response_tokens;
}

int64_t PlanRequest::activation_bytes() const {
  return machine.is_cpu || layout.precision == Precision::kFp32 ? 4 : 2;
}

}  // namespace fathom
