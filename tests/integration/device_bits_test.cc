// The model on a CUDA device gives the bits of the CPU, forward, backward and optimizer, in every
// mode: the plain kernels follow the CPU's orders of summation.
#include <cstring>

#include "fathom/model/forward.h"
#include "fathom/model/sequence_state.h"
#include "fathom/train/optimizer.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

class DeviceBitsTest : public ::testing::TestWithParam<Precision> {
 protected:
  /// The tiny model on either side.
  Weights weights(const ExecContext& ctx) {
    const std::string path = source_path("configs/tiny/model.json");
    Weights w = make_weights(parse_model_config(read_json_file(path), path));
    init_random_weights(w, 5);
    move_weights(ctx, &w);
    set_precision(ctx, &w, GetParam());
    return w;
  }

  static void expect_same(const Tensor& device, const Tensor& cpu, const std::string& what) {
    const Tensor got = device.to_host();
    ASSERT_EQ(got.shape(), cpu.shape()) << what;
    int64_t different = 0, first = -1;
    for (int64_t i = 0; i < got.numel(); ++i) {
      if (std::memcmp(got.f32() + i, cpu.f32() + i, sizeof(float)) == 0) continue;
      if (different++ == 0) first = i;
    }
    EXPECT_EQ(different, 0) << what << ": of " << got.numel() << ", the first at " << first << ": "
                            << got.f32()[first < 0 ? 0 : first] << " and "
                            << cpu.f32()[first < 0 ? 0 : first];
  }

  ThreadPool pool_{2};
  const ExecContext cpu_{&pool_, detect_cpu_isa()};
  const ExecContext device_{&pool_, detect_cpu_isa(), test_device()};
};

INSTANTIATE_TEST_SUITE_P(Modes, DeviceBitsTest, ::testing::ValuesIn(kAllPrecisions), name_of_mode);

TEST_P(DeviceBitsTest, ForwardWithAndWithoutCachedState) {
  const Weights on_cpu = weights(cpu_), on_device = weights(device_);
  const std::vector<int32_t> ids = random_ids(1, 150, on_cpu.config.vocab_size);
  const auto forward = [&](const ExecContext& ctx, const Weights& w, int64_t piece) {
    SequenceState state(w.config, 16, GetParam(), ctx.device);
    std::vector<Tensor> streams;
    for (int64_t begin = 0; begin < 150; begin += piece) {
      const int64_t n = std::min<int64_t>(piece, 150 - begin);
      Batch batch;
      batch.token_ids.assign(ids.begin() + begin, ids.begin() + begin + n);
      batch.segments.push_back({.start_pos = begin, .num_tokens = n, .state = &state});
      streams.push_back(forward_layers(ctx, w, batch, embed(ctx, w, batch)));
    }
    return streams;
  };
  for (const int64_t piece : {150, 37, 1}) {
    const std::vector<Tensor> want = forward(cpu_, on_cpu, piece);
    const std::vector<Tensor> got = forward(device_, on_device, piece);
    for (size_t i = 0; i < want.size(); ++i) {
      expect_same(got[i], want[i], str_cat("piece ", i, " of ", piece));
      if (HasFailure()) return;
    }
  }
}

TEST_P(DeviceBitsTest, LogProbsAndLogits) {
  const Weights on_cpu = weights(cpu_), on_device = weights(device_);
  const std::vector<int32_t> ids = random_ids(2, 60, on_cpu.config.vocab_size);
  const auto run = [&](const ExecContext& ctx, const Weights& w) {
    Batch batch;
    batch.token_ids = ids;
    batch.segments.push_back({.num_tokens = 60});
    std::vector<int64_t> rows;
    std::vector<int32_t> targets;
    for (int64_t t = 0; t + 1 < 60; t += 2) {
      rows.push_back(t);
      targets.push_back(ids[static_cast<size_t>(t + 1)]);
    }
    const Tensor hidden =
        collapse(ctx, w, forward_layers(ctx, w, batch, embed(ctx, w, batch)), rows);
    Tensor entropy = Tensor::empty({static_cast<int64_t>(rows.size())});
    const Tensor log_prob = log_probs(ctx, w, hidden, targets, 0.8f, entropy.f32());
    return std::vector<Tensor>{log_prob, entropy, logits(ctx, w, hidden)};
  };
  const std::vector<Tensor> want = run(cpu_, on_cpu), got = run(device_, on_device);
  for (size_t i = 0; i < want.size(); ++i) expect_same(got[i], want[i], str_cat("result ", i));
}

TEST_P(DeviceBitsTest, GradientsAndThreeSteps) {
  Weights on_cpu = weights(cpu_), on_device = weights(device_);
  std::vector<SupervisedExample> examples;
  for (const int64_t n : {24, 5, 40, 17, 30}) {
    examples.push_back({random_ids(static_cast<uint64_t>(n), n, on_cpu.config.vocab_size), n / 2});
  }
  Optimizer of_cpu(on_cpu, {}, [](const Parameter&) { return true; });
  Optimizer of_device(on_device, {}, [](const Parameter&) { return true; });
  for (int step = 0; step < 3; ++step) {
    SupervisedOptions options;
    options.mtp_loss_scaling_factor = 0.1;
    options.max_tokens_per_micro_batch = 60;
    const SupervisedMetrics a = supervised_forward_backward(cpu_, on_cpu, examples, options);
    const SupervisedMetrics b = supervised_forward_backward(device_, on_device, examples, options);
    EXPECT_EQ(a.loss, b.loss) << "step " << step;
    EXPECT_EQ(a.mtp_loss, b.mtp_loss) << "step " << step;
    const std::vector<Parameter*> cpu = parameters_by_name(on_cpu);
    const std::vector<Parameter*> device = parameters_by_name(on_device);
    for (size_t i = 0; i < cpu.size(); ++i) {
      if (!cpu[i]->grad.defined()) continue;
      Tensor want = Tensor::empty(cpu[i]->shape), got = Tensor::empty(cpu[i]->shape);
      cpu[i]->get_grad_row_major(want.f32());
      device[i]->get_grad_row_major(got.f32());
      expect_same(got, want, str_cat("step ", step, ", gradient of ", cpu[i]->name));
    }
    EXPECT_EQ(of_cpu.step(cpu_, 1e-3), of_device.step(device_, 1e-3)) << "step " << step;
    for (size_t i = 0; i < cpu.size(); ++i) {
      if (cpu[i]->kind == ParameterKind::kTable) continue;
      Tensor want = Tensor::empty(cpu[i]->shape), got = Tensor::empty(cpu[i]->shape);
      cpu[i]->get_row_major(want.f32());
      device[i]->get_row_major(got.f32());
      expect_same(got, want, str_cat("step ", step, ", weight ", cpu[i]->name));
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace fathom
