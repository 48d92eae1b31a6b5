#include "fathom/checkpoint/export_source.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/dcp_weights.h"
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
      check_stored(reader_, "", p, model_.config.n_routed_experts);
    });
  }
  const Weights& model() const override { return model_; }

  void read_rows(const Parameter& p, int64_t begin, int64_t end, float* out) const override {
    read_parameter_rows(reader_, p, model_.config.n_routed_experts, begin, end, out);
  }
  void read_table(const Parameter& p, int32_t* out) const override {
    const MegatronSlice s = megatron_slice(p.name, p.shape, model_.config.n_routed_experts);
    reader_.read_box(s.key, s.offsets, s.sizes, out);
  }

 private:
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
