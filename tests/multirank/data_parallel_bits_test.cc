// Ranks that share the samples: forward bits of one rank in every mode, gradients within the bound
// of docs/numerics.md, the same weights on all ranks after every step.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>

#include "fathom/dist/local_ranks.h"
#include "fathom/train/optimizer.h"
#include "fathom/train/score.h"
#include "tests/integration/tiny_model.h"

namespace fathom {
namespace {

constexpr double kGradientBound = 1e-5;  // L2 of the difference, relative to the tensor

std::vector<std::vector<int32_t>> some_sequences(int64_t vocab) {
  std::vector<std::vector<int32_t>> sequences;
  for (int64_t n : {37, 5, 90, 1, 61, 18, 44}) {
    sequences.push_back(random_ids(static_cast<uint64_t>(n), n, vocab));
  }
  return sequences;
}

void expect_all_well(const std::vector<std::string>& errors) {
  for (size_t r = 0; r < errors.size(); ++r) ASSERT_EQ(errors[r], "") << "rank " << r;
}

/// score() on `num_ranks` ranks; what member 0 has, by name.
std::map<std::string, Tensor> score_on(int num_ranks, Precision precision) {
  std::map<std::string, Tensor> result;
  expect_all_well(dist::run_local_ranks(num_ranks, [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx = {&pool, detect_cpu_isa()};
    Weights w = make_tiny_weights(3, precision);
    const NamedTensors tensors =
        score(ctx, w, some_sequences(w.config.vocab_size),
              {.with_logits = true, .with_gradients = true}, world.everyone());
    if (world.rank() == 0) result = {tensors.begin(), tensors.end()};
  }));
  return result;
}

double relative_difference(const Tensor& a, const Tensor& b) {
  double difference = 0.0, norm = 0.0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    difference += std::pow(static_cast<double>(a.f32()[i]) - b.f32()[i], 2);
    norm += std::pow(static_cast<double>(a.f32()[i]), 2);
  }
  return norm == 0.0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

class Modes : public ::testing::TestWithParam<Precision> {};
INSTANTIATE_TEST_SUITE_P(DataParallel, Modes, ::testing::ValuesIn(kAllPrecisions), name_of_mode);

TEST_P(Modes, ForwardHasTheBitsOfOneRankAndGradientsItsValues) {
  const std::map<std::string, Tensor> one = score_on(1, GetParam());
  for (int num_ranks : {2, 4}) {
    const std::map<std::string, Tensor> many = score_on(num_ranks, GetParam());
    ASSERT_EQ(many.size(), one.size());
    double worst = 0.0;
    for (const auto& [name, tensor] : one) {
      ASSERT_TRUE(many.contains(name)) << name;
      const Tensor& other = many.at(name);
      ASSERT_EQ(other.shape(), tensor.shape()) << name;
      if (name.starts_with("grad.")) {
        const double difference = relative_difference(tensor, other);
        worst = std::max(worst, difference);
        EXPECT_LE(difference, kGradientBound) << name << " on " << num_ranks << " ranks";
      } else {
        EXPECT_EQ(
            std::memcmp(tensor.bytes(), other.bytes(), static_cast<size_t>(tensor.num_bytes())), 0)
            << name << " on " << num_ranks << " ranks";
      }
    }
    RecordProperty(str_cat("worst_gradient_difference_", num_ranks), str_cat(worst));
    EXPECT_GT(worst, 0.0) << "the ranks' sums are not what this test is about";
  }
}

/// Three steps; the losses, and a hash of all masters after them by rank.
struct Trained {
  std::vector<double> losses, norms;
  std::vector<std::string> masters;
};

Trained train_on(int num_ranks) {
  Trained result;
  result.masters.resize(static_cast<size_t>(num_ranks));
  expect_all_well(dist::run_local_ranks(num_ranks, [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx = {&pool, detect_cpu_isa()};
    Weights w = make_tiny_weights(5);
    Optimizer optimizer(
        w, {}, [](const Parameter&) { return true; }, world.everyone());
    std::vector<SupervisedExample> examples;
    for (const auto& ids : some_sequences(w.config.vocab_size)) {
      if (ids.size() >= 2) examples.push_back({ids, 1});
    }
    for (int step = 0; step < 3; ++step) {
      const SupervisedMetrics m =
          supervised_forward_backward(ctx, w, examples, {}, world.everyone());
      const double norm = optimizer.step(ctx, 1e-3);
      if (world.rank() != 0) continue;
      result.losses.push_back(m.loss);
      result.losses.push_back(m.mtp_loss);
      result.norms.push_back(norm);
    }
    std::string bytes;
    for_each_parameter(std::as_const(w), [&](const Parameter& p) {
      bytes.append(reinterpret_cast<const char*>(p.master.bytes()),
                   static_cast<size_t>(p.master.num_bytes()));
    });
    result.masters[static_cast<size_t>(world.rank())] = sha256_hex(bytes);
  }));
  return result;
}

TEST(DataParallel, ThreeStepsStayTogether) {
  const Trained one = train_on(1);
  for (int num_ranks : {2, 3}) {
    const Trained many = train_on(num_ranks), again = train_on(num_ranks);
    EXPECT_EQ(many.masters, again.masters) << "another run has other bits";
    for (const std::string& m : many.masters) EXPECT_EQ(m, many.masters[0]);
    ASSERT_EQ(many.losses.size(), one.losses.size());
    EXPECT_EQ(many.losses[0], one.losses[0]);  // before any update: bit-equal
    EXPECT_EQ(many.losses[1], one.losses[1]);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(many.losses[i], one.losses[i], 1e-5 * std::abs(one.losses[i])) << i;
    }
    for (size_t i = 0; i < one.norms.size(); ++i) {
      EXPECT_NEAR(many.norms[i], one.norms[i], 1e-4 * one.norms[i]) << i;
    }
  }
}

}  // namespace
}  // namespace fathom
