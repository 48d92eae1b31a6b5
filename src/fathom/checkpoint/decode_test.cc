#include "fathom/checkpoint/decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include "fathom/base/error.h"
#include "fathom/checkpoint/safetensors_writer.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

Tensor random_bytes(std::vector<int64_t> shape, DType dtype, uint32_t seed, int low = 0,
                    int high = 255) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> byte(low, high);
  Tensor t = Tensor::empty(std::move(shape), dtype);
  for (int64_t i = 0; i < t.num_bytes(); ++i) t.bytes()[i] = static_cast<uint8_t>(byte(random));
  return t;
}

class DecodeTest : public ::testing::Test {
 protected:
  // The tensor as it comes out of a file.
  EncodedTensor encode(const Tensor& weight, const Tensor* scale) {
    const std::string dir = ::testing::TempDir() + "fathom_decode";
    make_directories(dir);
    const std::string path = dir + "/" +
                             ::testing::UnitTest::GetInstance()->current_test_info()->name() +
                             ".safetensors";
    std::vector<std::pair<std::string, Tensor>> tensors = {{"w", weight}};
    if (scale != nullptr) tensors.emplace_back("s", *scale);
    write_safetensors(path, tensors);
    shards_ = std::make_unique<TensorShards>(path);
    return identify_encoding(*shards_->find("w"), shards_->find("s"));
  }
  std::vector<uint16_t> decode(const EncodedTensor& t, int64_t begin, int64_t end) {
    std::vector<uint16_t> out(static_cast<size_t>((end - begin) * t.num_cols()));
    decode_rows(ctx_, t, begin, end, out.data());
    return out;
  }
  std::string problem_of(const Tensor& weight, const Tensor* scale) {
    try {
      encode(weight, scale);
    } catch (const UserError& e) {
      return e.what();
    }
    return "accepted";
  }

  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, CpuIsa::kAvx2};
  std::unique_ptr<TensorShards> shards_;
};

// One rounding of the fp32 product, element by element; any range of rows gives the same numbers.
TEST_F(DecodeTest, Fp8BlocksWithRaggedEdgesAndEveryRange) {
  const int64_t E = 2, M = 200, K = 150;
  const Tensor codes = random_bytes({E, M, K}, DType::kF8E4M3, 1);
  Tensor f32_scale = Tensor::empty({E, 2, 2});
  for (int i = 0; i < 8; ++i) f32_scale.f32()[i] = 0.37f * static_cast<float>(i + 1);
  const Tensor e8m0_scale = random_bytes({E, 2, 2}, DType::kF8E8M0, 2, 0, 130);
  for (const Tensor& scale : {f32_scale, e8m0_scale}) {
    const EncodedTensor t = encode(codes, &scale);
    EXPECT_EQ(t.encoding, Encoding::kFp8Blocks);
    EXPECT_EQ(t.dtype, DType::kBF16);
    EXPECT_EQ(t.num_rows(), E * M);
    const std::vector<uint16_t> all = decode(t, 0, E * M);
    for (int64_t e = 0; e < E; ++e) {
      for (int64_t r = 0; r < M; ++r) {
        for (int64_t c = 0; c < K; ++c) {
          const int64_t i = (e * M + r) * K + c, s = (e * 2 + r / 128) * 2 + c / 128;
          const float factor =
              scale.dtype() == DType::kF32 ? scale.f32()[s] : e8m0_to_f32(scale.bytes()[s]);
          ASSERT_EQ(all[static_cast<size_t>(i)],
                    f32_to_bf16(e4m3_to_f32(codes.bytes()[i]) * factor))
              << e << " " << r << " " << c;
        }
      }
    }
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 1}, {127, 129}, {50, 200}, {128, 200}, {190, 210}, {200, 400}, {399, 400}}) {
      const std::vector<uint16_t> part = decode(t, begin, end);
      EXPECT_EQ(0, std::memcmp(part.data(), all.data() + begin * K, part.size() * 2))
          << begin << " " << end;
    }
  }
}

TEST_F(DecodeTest, Fp4GroupsAreExactInBf16) {
  const int64_t M = 5, K = 96;
  const Tensor scale = random_bytes({M, K / 32}, DType::kF8E8M0, 4, 100, 150);
  for (const DType dtype : {DType::kI8, DType::kU8}) {
    const Tensor codes = random_bytes({M, K / 2}, dtype, 3);
    const EncodedTensor t = encode(codes, &scale);
    EXPECT_EQ(t.encoding, Encoding::kFp4Groups);
    EXPECT_EQ(t.shape, (std::vector<int64_t>{M, K}));
    std::vector<float> values(static_cast<size_t>(M * K));
    decode_rows_f32(ctx_, t, 0, M, values.data());
    for (int64_t r = 0; r < M; ++r) {
      for (int64_t c = 0; c < K; ++c) {
        const uint8_t pair = codes.bytes()[(r * K + c) / 2];
        const float expected = e2m1_to_f32(c % 2 == 0 ? pair & 15 : pair >> 4) *
                               e8m0_to_f32(scale.bytes()[r * K / 32 + c / 32]);
        ASSERT_EQ(values[static_cast<size_t>(r * K + c)], expected);
      }
    }
    const std::vector<uint16_t> all = decode(t, 0, M), tail = decode(t, 3, 5);
    EXPECT_EQ(0, std::memcmp(tail.data(), all.data() + 3 * K, tail.size() * 2));
  }
}

TEST_F(DecodeTest, PlainTensorsComeAsStored) {
  const Tensor f32 = random_bytes({3, 2}, DType::kF32, 5, 0, 100);
  EncodedTensor t = encode(f32, nullptr);
  EXPECT_EQ(t.dtype, DType::kF32);
  std::vector<float> values(4);
  decode_rows_f32(ctx_, t, 1, 3, values.data());
  EXPECT_EQ(0, std::memcmp(values.data(), f32.f32() + 2, 16));
  Tensor f16 = Tensor::empty({2}, DType::kF16);
  f16.u16()[0] = 0xB800;  // -0.5
  f16.u16()[1] = 0x0001;  // the smallest subnormal
  t = encode(f16, nullptr);
  EXPECT_EQ(t.num_rows(), 1);
  decode_rows_f32(ctx_, t, 0, 1, values.data());
  EXPECT_EQ(values[0], -0.5f);
  EXPECT_EQ(values[1], 0x1p-24f);
  t = encode(random_bytes({}, DType::kF32, 6), nullptr);
  EXPECT_EQ(t.num_rows() * t.num_cols(), 1);
}

TEST_F(DecodeTest, UnknownEncodingsAreRefused) {
  const Tensor fp8 = Tensor::zeros({128, 64}, DType::kF8E4M3);
  const Tensor fp4 = Tensor::zeros({4, 32}, DType::kI8);
  const Tensor good = Tensor::zeros({1, 1}, DType::kF8E8M0);
  EXPECT_EQ(problem_of(fp8, &good), "accepted");
  const Tensor per_tensor = Tensor::zeros({}, DType::kF32);
  EXPECT_NE(problem_of(fp8, &per_tensor).find("must have shape [1, 1]"), std::string::npos);
  const Tensor per_channel = Tensor::zeros({128, 1}, DType::kF32);
  EXPECT_NE(problem_of(fp8, &per_channel).find("must have shape [1, 1]"), std::string::npos);
  EXPECT_NE(problem_of(fp4, nullptr).find("scale of this quantised tensor is missing"),
            std::string::npos);
  const Tensor f32_groups = Tensor::zeros({4, 2}, DType::kF32);
  EXPECT_NE(problem_of(fp4, &f32_groups).find("must be E8M0"), std::string::npos);
  EXPECT_NE(problem_of(fp4, &good).find("must have shape [4, 2]"), std::string::npos);
  const Tensor ragged = Tensor::zeros({4, 17}, DType::kU8);
  EXPECT_NE(problem_of(ragged, &good).find("whole groups of 32"), std::string::npos);
  const Tensor vector = Tensor::zeros({64}, DType::kF8E4M3);
  EXPECT_NE(problem_of(vector, &good).find("must be a matrix"), std::string::npos);
  const Tensor bf16 = Tensor::zeros({128, 64}, DType::kBF16);
  EXPECT_NE(problem_of(bf16, &good).find("must not have a scale"), std::string::npos);
  for (const DType dtype : {DType::kF64, DType::kI16, DType::kBool, DType::kF8E8M0}) {
    EXPECT_NE(problem_of(Tensor::zeros({2, 2}, dtype), nullptr).find("cannot be decoded"),
              std::string::npos);
  }
}

TEST_F(DecodeTest, ScalesThatAreNotFiniteAreRefusedByPlace) {
  const Tensor fp8 = Tensor::zeros({128, 300}, DType::kF8E4M3);
  Tensor scale = Tensor::zeros({1, 3});
  scale.f32()[2] = INFINITY;
  EXPECT_NE(problem_of(fp8, &scale).find("scale 2 is infinite"), std::string::npos);
  scale.f32()[1] = NAN;
  EXPECT_NE(problem_of(fp8, &scale).find("scale 1 is NaN"), std::string::npos);
}

}  // namespace
}  // namespace fathom
