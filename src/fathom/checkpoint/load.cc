#include "fathom/checkpoint/load.h"

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/fill_weights.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

// Reads a model directory's tensors by rows. Files are read, not mapped: large reads keep the disk
// busy, page faults do not.
class RowReader {
 public:
  RowReader(const ExecContext& ctx, const ModelTensors& tensors) : ctx_(ctx), tensors_(tensors) {
    for (const auto& file : tensors.shards().files()) {
      files_[file.get()] = std::make_unique<FileReader>(file->path());
    }
  }

  void read_rows(const Parameter& p, int64_t begin, int64_t end, float* out) const {
    const ModelTensors::Source& s = tensors_.source(p.name);
    const EncodedTensor& t = *s.tensor;
    // A vector is one row, of the parameter and of the stored tensor.
    const int64_t first = s.first_row + begin, last = s.first_row + end;
    const RowBytes bytes = row_bytes(t, first, last);
    const std::vector<uint8_t> weight = read(t.weight, bytes.weight_begin, bytes.weight_bytes);
    std::vector<uint8_t> scale;
    if (bytes.scale_bytes > 0) scale = read(t.scale, bytes.scale_begin, bytes.scale_bytes);
    const int64_t n = (last - first) * t.num_cols();
    if (t.dtype == DType::kF32) {
      std::memcpy(out, weight.data(), static_cast<size_t>(n * 4));
    } else {
      std::vector<uint16_t> narrow(static_cast<size_t>(n));
      decode_row_bytes(ctx_, t, first, last, weight.data(), scale.data(), narrow.data());
      for (int64_t i = 0; i < n; ++i) {
        const uint16_t bits = narrow[static_cast<size_t>(i)];
        out[i] = t.dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
      }
    }
    check_finite(out, n, begin * t.num_cols(), t, p.name);
  }

  void read_table(const Parameter& p, int32_t* out) const {
    const EncodedTensor& t = *tensors_.source(p.name).tensor;
    const RowBytes bytes = row_bytes(t, 0, t.num_rows());
    const std::vector<uint8_t> ids = read(t.weight, bytes.weight_begin, bytes.weight_bytes);
    decode_expert_rows(t, tensors_.config().n_routed_experts, 0, t.num_rows(), ids.data(), out);
  }

 private:
  std::vector<uint8_t> read(const StoredTensor& stored, int64_t begin, int64_t num_bytes) const {
    std::vector<uint8_t> bytes(static_cast<size_t>(num_bytes));
    files_.at(stored.file)->read(begin, num_bytes, bytes.data());
    return bytes;
  }

  static void check_finite(const float* values, int64_t n, int64_t first,
                           const EncodedTensor& tensor, const std::string& name) {
    bool all = true;
    for (int64_t i = 0; i < n; ++i) all &= std::isfinite(values[i]);
    if (all) return;
    for (int64_t i = 0; i < n; ++i) {
      FATHOM_CHECK(std::isfinite(values[i]), tensor.weight.describe(), ": element ", first + i,
                   " of ", name, " is ", std::isnan(values[i]) ? "NaN" : "infinite",
                   "\n  fix: this checkpoint is damaged; fetch or convert it again");
    }
  }

  const ExecContext& ctx_;
  const ModelTensors& tensors_;
  std::map<const SafetensorsFile*, std::unique_ptr<FileReader>> files_;
};

}  // namespace

Weights load_weights(const ExecContext& ctx, const ModelTensors& tensors, const Layout& layout) {
  Weights weights = make_weights(tensors.config(), /*with_mtp=*/true, layout);
  std::vector<Parameter*> parameters;
  for_each_parameter(weights, [&](Parameter& p) { parameters.push_back(&p); });
  ctx.threads->parallel_for(static_cast<int64_t>(parameters.size()), 1,
                            [&](int64_t begin, int64_t end) {
                              for (int64_t i = begin; i < end; ++i) {
                                parameters[static_cast<size_t>(i)]->alloc();
                              }
                            });
  const RowReader reader(ctx, tensors);
  fill_weights(ctx, &weights,
               {[&](const Parameter& p, int64_t begin, int64_t end, float* out) {
                  reader.read_rows(p, begin, end, out);
                },
                [&](const Parameter& p, int32_t* out) { reader.read_table(p, out); }});
  return weights;
}

Weights load_weights(const ExecContext& ctx, const std::string& directory,
                     const LoadOptions& options) {
  const ModelTensors tensors(directory, options.with_mtp);
  for (const std::string& note : tensors.notes()) log_info("note: ", note);
  return load_weights(ctx, tensors, options.layout);
}

}  // namespace fathom
