#include "fathom/checkpoint/load.h"

#include <sys/mman.h>

#include <cmath>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/log.h"

namespace fathom {
namespace {

void check_finite(const std::vector<float>& values, const EncodedTensor& tensor,
                  const std::string& name) {
  for (size_t i = 0; i < values.size(); ++i) {
    FATHOM_CHECK(std::isfinite(values[i]), tensor.weight.describe(), ": element ", i, " of ", name,
                 " is ", std::isnan(values[i]) ? "NaN" : "infinite",
                 "\n  fix: this checkpoint is damaged; fetch or convert it again");
  }
}

// Has the disk read the parameter's bytes in one go, not page by page.
void prefetch(const ModelTensors::Source& source) {
  constexpr uintptr_t kPage = 4096;
  const EncodedTensor& t = *source.tensor;
  if (t.shape.size() != 2) return;
  const RowBytes bytes = row_bytes(t, source.first_row, source.first_row + source.num_rows);
  if (bytes.weight_bytes < (256 << 10)) return;
  const auto data = reinterpret_cast<uintptr_t>(t.weight.data()) +
                    static_cast<uintptr_t>(bytes.weight_begin - t.weight.entry->begin);
  const uintptr_t begin = data / kPage * kPage;
  ::madvise(reinterpret_cast<void*>(begin),
            data + static_cast<uintptr_t>(bytes.weight_bytes) - begin, MADV_WILLNEED);
}

void load_parameter(const ExecContext& ctx, const ModelTensors::Source& source, int64_t num_experts,
                    Parameter& p) {
  p.alloc();
  prefetch(source);
  if (p.kind == ParameterKind::kTable) {
    decode_expert_table(*source.tensor, num_experts, p.master.i32());
    p.refresh();
    return;
  }
  std::vector<float> values(static_cast<size_t>(p.numel()));
  decode_rows_f32(ctx, *source.tensor, source.first_row, source.first_row + source.num_rows,
                  values.data());
  check_finite(values, *source.tensor, p.name);
  p.set_row_major(values.data());
}

}  // namespace

Weights load_weights(const ExecContext& ctx, const ModelTensors& tensors) {
  Weights weights = make_weights(tensors.config());
  std::vector<Parameter*> parameters;
  for_each_parameter(weights, [&](Parameter& p) { parameters.push_back(&p); });
  // Experts are many and small, so threads take whole parameters.
  ctx.threads->parallel_for(
      static_cast<int64_t>(parameters.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          Parameter& p = *parameters[static_cast<size_t>(i)];
          load_parameter(ctx, tensors.source(p.name), tensors.config().n_routed_experts, p);
        }
      });
  return weights;
}

Weights load_weights(const ExecContext& ctx, const std::string& directory,
                     const LoadOptions& options) {
  const ModelTensors tensors(directory, options.with_mtp);
  for (const std::string& note : tensors.notes()) log_info("note: ", note);
  return load_weights(ctx, tensors);
}

}  // namespace fathom
