// A cache that stores bytes must be one that changes nothing: what went through simulated
// quantisation comes back bit for bit, with the byte counts that published engines have.
#include "fathom/kernels/quant/entry_codec.h"

#include <limits>

#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/quant/quant.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

/// Latent rows and indexer keys of the release, and of models whose sizes divide nothing.
std::vector<EntryFormat> formats() {
  return {f32_entries(512),          bf16_entries(512),
          fp8_entries(512, 448, 64), fp8_entries(128, 128, 128),
          fp8_entries(64, 32, 64),   fp8_entries(47, 37, 16),
          bf16_entries(7),           fp8_entries(20, 0, 64)};
}

/// What the model would hold: rows rounded to BF16, the FP8 channels simulated.
std::vector<float> simulated_rows(const ExecContext& ctx, const EntryFormat& f, int64_t count,
                                  uint32_t seed) {
  std::vector<float> rows = random_floats(count * f.width, -4, 4, seed);
  std::mt19937 generator(seed);
  for (float& v : rows) v = std::ldexp(v, -static_cast<int>(generator() % 24));
  if (f.kind != EntryKind::kF32) round_bf16(ctx, rows.data(), count * f.width, rows.data());
  if (f.kind == EntryKind::kFp8) {
    simulate_fp8_rows(
        ctx, {rows.data(), f.width, rows.data(), f.width, count, f.fp8_channels, f.fp8_block});
  }
  return rows;
}

TEST(EntryCodecTest, BytesOfAnEntry) {
  EXPECT_EQ(fp8_entries(512, 448, 64).num_bytes, 584);   // 448 + 64 * 2 + 7, and one for alignment
  EXPECT_EQ(fp8_entries(128, 128, 128).num_bytes, 132);  // 128 + 1, and three
  EXPECT_EQ(bf16_entries(512).num_bytes, 1024);
  EXPECT_EQ(f32_entries(128).num_bytes, 512);
}

TEST(EntryCodecTest, SimulatedRowsComeBackBitForBit) {
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const EntryFormat& f : formats()) {
      const int64_t count = 300;
      const std::vector<float> rows = simulated_rows(ctx, f, count, 8);
      std::vector<uint8_t> bytes(static_cast<size_t>(count * f.num_bytes));
      encode_entries(f, rows.data(), count, bytes.data());
      std::vector<float> back(rows.size());
      decode_entries(ctx, f, bytes.data(), count, back.data());
      expect_same_bits(back, rows, name + ", entries of " + std::to_string(f.num_bytes) + " bytes");
      // One at a time gives the same bytes.
      std::vector<uint8_t> one(static_cast<size_t>(f.num_bytes));
      encode_entries(f, rows.data() + 7 * f.width, 1, one.data());
      expect_same_bits(one, {bytes.begin() + 7 * f.num_bytes, bytes.begin() + 8 * f.num_bytes},
                       name);
    }
  });
}

TEST(EntryCodecTest, EveryCodeAndEveryScaleDecodesExactly) {
  const EntryFormat f = fp8_entries(256, 256, 256);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    for (const int scale : {0, 1, 60, 105, 127, 200, 246}) {
      std::vector<uint8_t> bytes(static_cast<size_t>(f.num_bytes));
      for (int code = 0; code < 256; ++code)
        bytes[static_cast<size_t>(code)] = static_cast<uint8_t>(code);
      bytes[256] = static_cast<uint8_t>(scale);
      std::vector<float> got(256);
      decode_entries(ctx, f, bytes.data(), 1, got.data());
      for (int code = 0; code < 256; ++code) {
        const float want =
            e4m3_to_f32(static_cast<uint8_t>(code)) * e8m0_to_f32(static_cast<uint8_t>(scale));
        if (std::isnan(want)) {
          EXPECT_TRUE(std::isnan(got[static_cast<size_t>(code)])) << name << ", code " << code;
        } else {
          EXPECT_EQ(got[static_cast<size_t>(code)], want)
              << name << ", code " << code << ", scale " << scale;
        }
      }
    }
  });
}

TEST(EntryCodecTest, TheCodesAndScalesOfARowAreThoseOfTheDefinition) {
  const EntryFormat f = fp8_entries(66, 64, 32);
  std::vector<float> row(66, 0.0f);
  row[0] = 448.0f;
  row[1] = -1.0f;
  row[2] = 0x1p-9f;
  row[32] = -3.0f;  // amax 3: scale 2^-7, code of -384
  row[64] = 1.5f;
  row[65] = -2.0f;
  std::vector<uint8_t> bytes(static_cast<size_t>(f.num_bytes));
  encode_entries(f, row.data(), 1, bytes.data());
  EXPECT_EQ(bytes[0], 0x7E);
  EXPECT_EQ(bytes[1], 0xB8);
  EXPECT_EQ(bytes[2], 0x01);
  EXPECT_EQ(bytes[32], 0xFC);
  EXPECT_EQ(bytes[64] | bytes[65] << 8, 0x3FC0);
  EXPECT_EQ(bytes[66] | bytes[67] << 8, 0xC000);
  EXPECT_EQ(bytes[68], 127);
  EXPECT_EQ(bytes[69], 120);
  EXPECT_EQ(bytes[70], 0);
  EXPECT_EQ(f.num_bytes, 72);
}

TEST(EntryCodecTest, WhatIsNotANumberStaysVisible) {
  const EntryFormat f = fp8_entries(128, 128, 64);
  ThreadPool pool(1);
  const ExecContext ctx{&pool, detect_cpu_isa()};
  std::vector<float> row(128, 1.0f), back(128);
  row[5] = std::nanf("");
  row[100] = std::numeric_limits<float>::infinity();
  std::vector<uint8_t> bytes(static_cast<size_t>(f.num_bytes));
  encode_entries(f, row.data(), 1, bytes.data());
  decode_entries(ctx, f, bytes.data(), 1, back.data());
  for (int i = 0; i < 128; ++i) EXPECT_EQ(std::isnan(back[i]), i == 5 || i >= 64) << i;
}

}  // namespace
}  // namespace fathom
