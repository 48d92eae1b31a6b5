#include "fathom/kernels/rows/rows.h"

#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/rows/rows_ref.h"

namespace fathom {
namespace {

TEST(RowsTest, PickedRowsAreCopiesAndGoBackBySum) {
  const int64_t width = 37;
  const std::vector<int64_t> rows = {4, 0, 4, 9, 3};  // one twice
  const auto x = random_floats(10 * width, -2, 2, 1);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> picked(rows.size() * width, -7.0f);
    gather_rows(ctx, x.data(), rows.data(), 5, width, picked.data());
    expect_close(picked, gather_rows_ref(to_double(x), rows, width), 0, 0, name);
    std::vector<float> sum = x;
    add_rows(ctx, picked.data(), rows.data(), 5, width, sum.data());
    expect_close(sum, add_rows_ref(to_double(picked), rows, width, to_double(x)), 1e-6, 1e-6, name);
  });
}

TEST(RowsTest, StreamsOfAToken) {
  const int64_t T = 5, M = 3, D = 19;
  const auto e = random_floats(T * D, -2, 2, 2), d = random_floats(T * M * D, -2, 2, 3);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> streams = d, sum(T * D, -7.0f);
    add_to_streams(ctx, T, M, D, e.data(), streams.data());
    expect_close(streams, add_to_streams_ref(T, M, D, to_double(e), to_double(d)), 1e-6, 1e-6,
                 name);
    sum_streams(ctx, T, M, D, d.data(), sum.data());
    expect_close(sum, sum_streams_ref(T, M, D, to_double(d)), 1e-6, 1e-6, name);
  });
}

TEST(RowsTest, ScalingIsOneProductAnElement) {
  const auto x = random_floats(1000, -2, 2, 4);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    std::vector<float> y = x;
    scale_elements(ctx, 999, 0.3f, y.data());
    for (size_t i = 0; i < 999; ++i) ASSERT_EQ(y[i], x[i] * 0.3f) << name;
    EXPECT_EQ(y[999], x[999]) << name;
  });
}

TEST(RowsTest, NothingToDo) {
  for_each_context([](const ExecContext& ctx, const std::string&) {
    gather_rows(ctx, nullptr, nullptr, 0, 8, nullptr);
    add_rows(ctx, nullptr, nullptr, 0, 8, nullptr);
    add_to_streams(ctx, 0, 4, 8, nullptr, nullptr);
    sum_streams(ctx, 0, 4, 8, nullptr, nullptr);
    scale_elements(ctx, 0, 2.0f, nullptr);
  });
}

}  // namespace
}  // namespace fathom
