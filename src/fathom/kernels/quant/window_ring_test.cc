#include "fathom/kernels/quant/window_ring.h"

#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/quant/entry_codec.h"

namespace fathom {
namespace {

constexpr int64_t kWidth = 20, kWindow = 8;

std::vector<EntryFormat> formats() {
  return {f32_entries(kWidth), bf16_entries(kWidth), fp8_entries(kWidth, 16, 8)};
}

/// A row as it comes back from its stored bytes.
std::vector<float> stored(const ExecContext& ctx, const EntryFormat& f, const float* row) {
  std::vector<uint8_t> bytes(static_cast<size_t>(f.num_bytes));
  std::vector<float> out(kWidth);
  ExecContext host = ctx;
  host.device = nullptr;
  encode_entries(f, row, 1, bytes.data());
  decode_entries(host, f, bytes.data(), 1, out.data());
  return out;
}

TEST(WindowRingTest, CachedRowsComeBackBehindEachOtherWhateverThePieces) {
  const int64_t n = 40;
  const auto kv = random_floats(2 * n * kWidth, -3, 3, 1);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const EntryFormat& f : formats()) {
      for (const int64_t piece : {1, 3, 8, 13}) {
        std::vector<uint8_t> rings(static_cast<size_t>(2 * kWindow * f.num_bytes), 0xAB);
        for (int64_t start = 0; start < n; start += piece) {
          const int64_t tokens = std::min(piece, n - start);
          const int64_t cached = std::min(start, kWindow - 1);
          // Two sequences side by side; the second has no state.
          std::vector<float> fresh;
          for (int64_t s = 0; s < 2; ++s) {
            const float* from = kv.data() + (s * n + start) * kWidth;
            fresh.insert(fresh.end(), from, from + tokens * kWidth);
          }
          std::vector<float> rows(static_cast<size_t>((cached + 2 * tokens) * kWidth), -9.0f);
          window_gather(ctx, f, kWindow,
                        {{rings.data(), start, cached, tokens, 0, 0},
                         {nullptr, 0, 0, tokens, cached + tokens, tokens}},
                        fresh.data(), rows.data());
          window_keep(ctx, f, kWindow, {{rings.data(), start, tokens, 0}}, fresh.data());
          for (int64_t j = 0; j < cached; ++j) {
            const auto want = stored(ctx, f, kv.data() + (start - cached + j) * kWidth);
            expect_same_bits(
                std::vector<float>(rows.begin() + j * kWidth, rows.begin() + (j + 1) * kWidth),
                want, name + ", cached row");
          }
          expect_same_bits(std::vector<float>(rows.begin() + cached * kWidth, rows.end()), fresh,
                           name + ", new rows");
        }
      }
    }
  });
}

TEST(WindowRingTest, RunsOfRowsAreStoredWhereTheyBelong) {
  const auto rows = random_floats(9 * kWidth, -3, 3, 2);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const EntryFormat& f : formats()) {
      std::vector<uint8_t> want(static_cast<size_t>(9 * f.num_bytes), 0xAB), got = want;
      const auto at = [&](std::vector<uint8_t>& v, int64_t i) {
        return v.data() + i * f.num_bytes;
      };
      encode_entries(f, rows.data() + 2 * kWidth, 3, at(want, 4));
      encode_entries(f, rows.data() + 8 * kWidth, 1, at(want, 0));
      encode_entry_runs(ctx, f, rows.data(),
                        {{2, 3, at(got, 4)}, {8, 1, at(got, 0)}, {0, 0, nullptr}});
      EXPECT_EQ(got, want) << name;
    }
  });
}

}  // namespace
}  // namespace fathom
