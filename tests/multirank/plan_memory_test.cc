// What `fathom plan` says a training step takes, against what it takes: the peak of a process of
// its own that runs the ranks of a layout as threads, compared with the sum over the ranks. A plan
// counts what is alive; so every large piece of memory is given back here as soon as it is free,
// and what the C library would keep of it for later is not measured.
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <string>

#include "fathom/base/error.h"
#include "fathom/dist/local_ranks.h"
#include "fathom/plan/memory.h"
#include "fathom/plan/model_shapes.h"
#include "fathom/train/optimizer.h"
#include "fathom/train/supervised.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

constexpr double kBound = 0.05;

struct Case {
  const char* name;
  ModelConfig config;
  dist::MeshShape mesh;
  Precision precision;
  int64_t samples, sequence_tokens;
  bool sequence_parallel = false;
};

/// The tiny model with wider layers: some 40 million parameters.
ModelConfig wider() {
  ModelConfig c = tiny_shape();
  c.vocab_size = 2048;
  c.hidden_size = 512;
  c.moe_intermediate_size = 512;
  c.num_hidden_layers = 4;
  c.compress_ratios = {0, 4, 16, 4, 0};
  c.q_lora_rank = 128;
  c.o_lora_rank = 64;
  return c;
}

/// 300 million parameters, nearly all of them experts'.
ModelConfig model_300m() {
  ModelConfig c = wider();
  c.hidden_size = 768;
  c.moe_intermediate_size = 1024;
  c.n_routed_experts = 28;
  return c;
}

// A layout that the trainer learns to compute is one line more.
std::vector<Case> cases() {
  return {
      {"wide_one_rank", wider(), {}, Precision::kFp32, 2, 512},
      {"wide_one_rank_bf16", wider(), {}, Precision::kParityBf16, 2, 512},
      {"wide_dp2", wider(), {.dp = 2}, Precision::kFp32, 2, 512},
      {"wide_dp4", wider(), {.dp = 4}, Precision::kFp32, 4, 256},
      {"wide_tp2", wider(), {.tp = 2}, Precision::kFp32, 2, 512},
      {"wide_tp2sp", wider(), {.tp = 2}, Precision::kFp32, 2, 512, true},
      {"wide_tp2ep2sp", wider(), {.tp = 2, .ep = 2}, Precision::kFp32, 2, 512, true},
      {"wide_cp2", wider(), {.cp = 2}, Precision::kFp32, 2, 512},
      {"wide_dp2ep2", wider(), {.dp = 2, .ep = 2}, Precision::kFp32, 2, 512},
      {"wide_pp2", wider(), {.pp = 2}, Precision::kFp32, 2, 512},
      {"300m_one_rank", model_300m(), {}, Precision::kFp32, 1, 128},
      {"tiny_one_rank", tiny_shape(), {}, Precision::kFp32, 8, 900},
      {"tiny_dp2", tiny_shape(), {.dp = 2}, Precision::kFp32, 8, 900},
      {"tiny_dp2_bf16", tiny_shape(), {.dp = 2}, Precision::kParityBf16, 8, 900},
  };
}

PlanRequest request_of(const Case& c) {
  PlanRequest r;
  r.model_name = c.name;
  r.config = c.config;
  r.layout = {.mesh = c.mesh, .precision = c.precision};
  r.machine = *find_machine("CPU");
  r.batch = {.samples = c.samples,
             .sequence_tokens = c.sequence_tokens,
             .response_tokens = c.sequence_tokens - 1,
             .samples_per_micro_batch = c.samples / c.mesh.dp};
  r.sequence_parallel = c.sequence_parallel;
  r.freezes_gate = false;
  return r;
}

void train(const Case& c) {
  const auto errors = dist::run_local_ranks(c.mesh.size(), [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx = {&pool, detect_cpu_isa()};
    RankGroups groups(world.everyone(), c.mesh, c.sequence_parallel, 16);
    groups.set_stages(c.config);
    Weights w = make_weights(c.config, true, groups.layout);
    init_random_weights(w, 3);
    if (c.precision != Precision::kFp32) set_precision(ctx, &w, c.precision);
    Optimizer optimizer(
        w, {}, [](const Parameter& p) { return !p.name.starts_with("mtp."); }, groups);
    std::vector<SupervisedExample> examples;
    for (int64_t s = 0; s < c.samples; ++s) {
      examples.push_back(
          {random_ids(static_cast<uint64_t>(s), c.sequence_tokens + 1, c.config.vocab_size), 2});
    }
    SupervisedOptions options;
    options.max_tokens_per_micro_batch = c.samples * (c.sequence_tokens + 1);
    options.mtp_loss_scaling_factor = 0.0;
    supervised_forward_backward(ctx, w, examples, options, groups);
    optimizer.step(ctx, 1e-4);
  });
  for (const std::string& e : errors) FATHOM_CHECK(e.empty(), e);
}

/// Of all ranks as threads of one process. There is one micro-batch: the stages of a pipeline work
/// one after the other, while those before them keep what they have saved.
int64_t predicted_together(const PlanRequest& r, const ShardTable& table) {
  const auto num_stages = static_cast<size_t>(r.layout.mesh.pp);
  std::vector<int64_t> saved(num_stages), working(num_stages);
  int64_t always = r.machine.process_bytes;
  for (int rank = 0; rank < r.num_ranks(); ++rank) {
    const RankMemory m = rank_memory(r, table, rank);
    always += m.weights + m.gradients + m.optimizer;
    saved[static_cast<size_t>(m.stage)] += m.saved_activations;
    working[static_cast<size_t>(m.stage)] += m.working_activations;
  }
  int64_t most = 0, saved_so_far = 0;
  for (size_t s = 0; s < num_stages; ++s) {
    saved_so_far += saved[s];
    most = std::max(most, saved_so_far + working[s]);
  }
  return always + most;
}

/// Bytes that a process which does nothing but this takes at most. 0: it failed.
int64_t peak_of_own_process(const Case& c) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::mallopt(M_MMAP_THRESHOLD, 64 << 10);
    try {
      train(c);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s\n", e.what());
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  struct rusage usage {};
  if (child < 0 || ::wait4(child, &status, 0, &usage) != child || status != 0) return 0;
  return int64_t{usage.ru_maxrss} * 1024;
}

class PlanMemory : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Layouts, PlanMemory, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_P(PlanMemory, IsWhatTheStepTakes) {
  const PlanRequest r = request_of(GetParam());
  const int64_t predicted = predicted_together(r, ShardTable(r));
  const int64_t measured = peak_of_own_process(GetParam());
  ASSERT_GT(measured, 0);
  const double off = static_cast<double>(predicted) / static_cast<double>(measured) - 1.0;
  std::printf("%s: predicted %.1f MB, measured %.1f MB, %+.1f %%\n", GetParam().name,
              static_cast<double>(predicted) / 1e6, static_cast<double>(measured) / 1e6,
              100.0 * off);
  EXPECT_LE(std::abs(off), kBound);
}

}  // namespace
}  // namespace fathom
