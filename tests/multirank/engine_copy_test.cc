// A copy of the model for engines: on every rank of every layout what one rank's kernels read, in
// every mode, and again after a step.
#include "fathom/weight_sync/engine_copy.h"

#include <gtest/gtest.h>

#include "tests/multirank/layouts.h"

namespace fathom {
namespace {

/// Changes every trained weight a little, the same on all ranks that have it.
void change(const ExecContext& ctx, Weights* w) {
  for_each_parameter(*w, [](Parameter& p) {
    if (p.kind == ParameterKind::kTable) return;
    for (int64_t i = 0; i < p.master.numel(); ++i) p.master.f32()[i] *= 1.01f;
  });
  refresh_weights(ctx, w);
}

void expect_copy_of(const Weights& whole, const Weights& copy) {
  std::map<std::string, Tensor> expected;
  for_each_parameter(whole, [&](const Parameter& p) { expected[p.name] = p.compute; });
  size_t num_parameters = 0;
  for_each_parameter(copy, [&](const Parameter& p) {
    ++num_parameters;
    const Tensor& of_one = expected.at(p.name);
    FATHOM_ASSERT(p.compute.num_bytes() == of_one.num_bytes() &&
                      std::memcmp(p.compute.bytes(), of_one.bytes(),
                                  static_cast<size_t>(of_one.num_bytes())) == 0,
                  p.name, " differs");
  });
  FATHOM_ASSERT(num_parameters == expected.size());
}

void check_copies(const TestLayout& layout, Precision trained, Precision rollout) {
  SCOPED_TRACE(str_cat(layout.text(), " ", precision_name(trained), " ", precision_name(rollout)));
  const Weights whole = make_six_layers(5, trained);
  ThreadPool one(1);
  const ExecContext here = {&one, detect_cpu_isa()};
  Weights expected = make_six_layers(5, rollout), changed = make_six_layers(5, rollout);
  change(here, &changed);
  const int64_t multiple = trained == Precision::kParityFp8 ? 128 : 16;
  expect_all_well(dist::run_local_ranks(layout.num_ranks(), [&](dist::World& world) {
    ThreadPool pool(1);
    const ExecContext ctx = {&pool, detect_cpu_isa()};
    const RankGroups groups = groups_of(layout, world, whole.config, multiple);
    Weights w = part_of(whole, groups.layout);
    EngineCopy copy(ctx, groups, w, rollout);
    copy.update(ctx);
    expect_copy_of(expected, copy.weights());
    change(ctx, &w);
    copy.update(ctx);
    expect_copy_of(changed, copy.weights());
  }));
}

TEST(EngineCopy, HasTheTrainersBits) {
  for (const Precision precision : kAllPrecisions) {
    check_copies({.pp = 3}, precision, precision);
    check_copies({.pp = 2, .tp = 2}, precision, precision);
    check_copies({.cp = 2, .dp = 2, .ep = 2}, precision, precision);
  }
}

TEST(EngineCopy, RoundsMastersWhereRolloutHasAnotherPrecision) {
  check_copies({.pp = 2, .tp = 2}, Precision::kParityBf16, Precision::kParityFp8);
  check_copies({.pp = 2}, Precision::kParityFp8, Precision::kFp32);
}

}  // namespace
}  // namespace fathom
