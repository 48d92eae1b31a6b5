#include "fathom/checkpoint/export_source.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/megatron_names.h"

namespace fathom {
namespace {

class MemorySource : public ExportSource {
 public:
  explicit MemorySource(const Weights& weights) : weights_(weights) {}
  const Weights& model() const override { return weights_; }

  void read_rows(const Parameter& p, int64_t begin, int64_t end, float* out) const override {
    const int64_t cols = parameter_cols(p);
    const float* master = p.master.f32();
    if (p.device != nullptr) {
      const std::lock_guard<std::mutex> lock(mutex_);  // a device is asked by one at a time
      const auto num_values = static_cast<size_t>((end - begin) * cols);
      download_memory(p.device, out, master + begin * cols, num_values * sizeof(float));
      return;
    }
    if (p.kind == ParameterKind::kPlain) {
      std::copy(master + begin * cols, master + end * cols, out);
      return;
    }
    for (int64_t row = begin; row < end; ++row) {
      const float* from = master + p.panels.index(row, 0);
      for (int64_t k = 0; k < cols; ++k) *out++ = from[k * kPanelRows];
    }
  }
  void read_table(const Parameter& p, int32_t* out) const override {
    download_memory(p.device, out, p.master.i32(), static_cast<size_t>(p.master.num_bytes()));
  }

 private:
  const Weights& weights_;
  mutable std::mutex mutex_;
};

class TorchDistSource : public ExportSource {
 public:
  TorchDistSource(const std::string& path, ModelConfig config) : reader_(resolve_checkpoint(path)) {
    const MegatronSlice mtp =
        megatron_slice("mtp.0.norm.weight", {config.hidden_size}, config.n_routed_experts);
    if (!reader_.contains(mtp.key)) {
      config.num_nextn_predict_layers = 0;
      config.compress_ratios.resize(static_cast<size_t>(config.num_hidden_layers));
    }
    model_ = make_weights(config);
    for_each_parameter(std::as_const(model_), [&](const Parameter& p) {
      const MegatronSlice s = slice(p);
      const DcpTensor& stored = reader_.tensor(s.key);
      FATHOM_CHECK(stored.shape == s.shape, reader_.directory(), ": ", s.key, " has the shape ",
                   shape_to_string(stored.shape), ", the model needs ", shape_to_string(s.shape),
                   "\n  fix: give the checkpoint of the same model, or its config.json");
      const bool is_table = p.kind == ParameterKind::kTable;
      const bool fits = is_table ? stored.dtype == DType::kI32
                                 : stored.dtype == DType::kBF16 || stored.dtype == DType::kF32;
      FATHOM_CHECK(fits, reader_.directory(), ": ", s.key, " is stored as ",
                   dtype_name(stored.dtype), ", expected ", is_table ? "I32" : "BF16 or F32");
    });
  }
  const Weights& model() const override { return model_; }

  void read_rows(const Parameter& p, int64_t begin, int64_t end, float* out) const override {
    MegatronSlice s = slice(p);
    if (p.shape.size() == 2) {
      // The parameter's dimensions are the last ones of the stored box.
      const size_t row = s.sizes.size() - 2;
      s.offsets[row] += begin;
      s.sizes[row] = end - begin;
    }
    if (reader_.tensor(s.key).dtype == DType::kF32) {
      reader_.read_box(s.key, s.offsets, s.sizes, out);
      return;
    }
    const int64_t n = (end - begin) * parameter_cols(p);
    std::vector<uint16_t> half(static_cast<size_t>(n));
    reader_.read_box(s.key, s.offsets, s.sizes, half.data());
    for (int64_t i = 0; i < n; ++i) {
      out[i] = std::bit_cast<float>(static_cast<uint32_t>(half[static_cast<size_t>(i)]) << 16);
    }
  }
  void read_table(const Parameter& p, int32_t* out) const override {
    const MegatronSlice s = slice(p);
    reader_.read_box(s.key, s.offsets, s.sizes, out);
  }

 private:
  MegatronSlice slice(const Parameter& p) const {
    return megatron_slice(p.name, p.shape, model_.config.n_routed_experts);
  }

  mutable DcpReader reader_;
  Weights model_;
};

}  // namespace

int64_t parameter_rows(const Parameter& p) { return p.shape.size() == 2 ? p.shape[0] : 1; }

int64_t parameter_cols(const Parameter& p) {
  const int64_t rows = parameter_rows(p);
  return rows > 0 ? p.numel() / rows : 0;
}

std::unique_ptr<ExportSource> export_from_memory(const Weights& weights) {
  return std::make_unique<MemorySource>(weights);
}

std::unique_ptr<ExportSource> export_from_torch_dist(const std::string& path, ModelConfig config) {
  return std::make_unique<TorchDistSource>(path, std::move(config));
}

}  // namespace fathom
