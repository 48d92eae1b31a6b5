#include "fathom/checkpoint/zip.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/hash.h"
#include "fathom/checkpoint/pickle_tensor.h"
#include "fathom/checkpoint/zip_crc.h"

namespace fathom {
namespace {

// Byte i of the elements is (7 i + 3) mod 251, for kBool i mod 2.
std::string pattern(DType dtype, const std::vector<int64_t>& shape) {
  int64_t n = dtype_size(dtype);
  for (int64_t d : shape) n *= d;
  std::string bytes;
  for (int64_t i = 0; i < n; ++i) {
    bytes.push_back(static_cast<char>(dtype == DType::kBool ? i % 2 : (i * 7 + 3) % 251));
  }
  return bytes;
}

std::string archive_of(DType dtype, const std::vector<int64_t>& shape, const std::string& data,
                       int64_t alignment = 64) {
  std::string out;
  const int64_t written = write_tensor_archive(
      dtype, shape,
      [&](const ByteSink& sink) {  // in two pieces
        const auto n = static_cast<int64_t>(data.size());
        sink(data.data(), n / 3);
        sink(data.data() + n / 3, n - n / 3);
      },
      alignment,
      [&](const void* p, int64_t n) {
        out.append(static_cast<const char*>(p), static_cast<size_t>(n));
      });
  EXPECT_EQ(written, static_cast<int64_t>(out.size()));
  return out;
}

std::span<const uint8_t> span_of(const std::string& bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

template <typename Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const UserError& e) {
    return e.what();
  }
  return "no error";
}

TEST(Crc32Test, AgreesWithTheStandardCheckValueAndContinues) {
  const std::string digits = "123456789";
  EXPECT_EQ(crc32(0, digits.data(), 9), 0xCBF43926u);
  std::string bytes = pattern(DType::kU8, {1000});
  const uint32_t whole = crc32(0, bytes.data(), 1000);
  for (int64_t cut : {0, 1, 15, 16, 17, 500, 999}) {
    EXPECT_EQ(crc32(crc32(0, bytes.data(), cut), bytes.data() + cut, 1000 - cut), whole) << cut;
  }
}

TEST(Crc32Test, EveryLengthAndAlignmentAgreesWithTheDefinition) {
  const std::string bytes = pattern(DType::kU8, {400});
  for (int64_t start = 0; start < 17; ++start) {
    uint32_t state = 0xFFFFFFFFu;
    for (int64_t n = 0; start + n < 400; ++n) {
      EXPECT_EQ(crc32(0, bytes.data() + start, n), ~state) << start << " " << n;
      state ^= static_cast<uint8_t>(bytes[static_cast<size_t>(start + n)]);
      for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ (state & 1 ? 0xEDB88320u : 0u);
    }
  }
}

// SHA-256 of what torch 2.11.0 made: torch.save(tensor, BytesIO) of a CPU tensor with the elements
// of `pattern` (torch.frombuffer(...).reshape(shape)).
TEST(TorchArchiveTest, TensorArchivesAreTheBytesOfTorchSave) {
  struct Case {
    DType dtype;
    std::vector<int64_t> shape;
    size_t size;
    const char* sha256;
  };
  const Case cases[] = {
      {DType::kBF16,
       {5, 7},
       1641,
       "912c98829f95db8e481de0172e5703ac519122fe7e3baf6f711381cae6f901a2"},
      {DType::kF32, {}, 1577, "205f70d3c824d8d7a1527954acc9fdabb9856d410cf8b25f9fe5e869a192057a"},
      {DType::kF32, {3}, 1577, "347712c25d2c81e82727f439175f98f2e73db9778b7b169a68e17d9e1e4b0bb9"},
      {DType::kI32,
       {1, 4, 6},
       1641,
       "fbf1321fda93087fe8c661a3309e257fe44e61e2ea776a456bd715fddc4b1d34"},
      {DType::kF64,
       {2, 3, 4, 5},
       2537,
       "f75e8752ec3a749e60f811e441ab31e083e4d38115f36b810ad2c462752762f4"},
      {DType::kI64,
       {0, 4},
       1513,
       "6e7723293de675bdd632d12ec9629e95c9f8f4a341ff51e2a1ffe3bdeda690c0"},
      {DType::kU8,
       {70000},
       71529,
       "7910880ae67ccaba9ed6d1cfc773626d0bbbf2fc0cd6aa76f07864941bffd4f3"},
      {DType::kF8E4M3,
       {2, 130},
       1897,
       "b071704038fedd7f5105c6bba4761bc32f3609d0e68837e05a5a05f90dc606bc"},
      {DType::kBool,
       {300, 2, 1},
       2153,
       "183ee7aacbd23836829166ce5fe577765febd237ce80bbc97145fb15e4d64636"},
      {DType::kI16,
       {1, 1, 1, 1, 1},
       1577,
       "163cff402dc1447d9b6a1267aafc6069cbc0d6e728967e30b0df87d33160ca58"},
  };
  for (const Case& c : cases) {
    const std::string bytes = archive_of(c.dtype, c.shape, pattern(c.dtype, c.shape));
    EXPECT_EQ(bytes.size(), c.size) << dtype_name(c.dtype);
    EXPECT_EQ(sha256_hex(bytes), c.sha256) << dtype_name(c.dtype);
  }
}

// The same of torch.zeros(n, dtype=torch.uint8) at the limit of 32 bits and beyond; hashed are the
// bytes around the elements.
TEST(TorchArchiveTest, ArchivesBeyond4GigabytesAreThoseOfTorchSaveToo) {
  constexpr int64_t kHead = 704;
  struct Case {
    int64_t num_elements, size;
    const char* sha256;
  };
  const Case cases[] = {{(int64_t{1} << 32) - 1, 4294968925,
                         "b73ed3a0aa1c67a55bdec14c814b745f56158470431b304e4b7849288c399f1a"},
                        {int64_t{1} << 32, 4294968925,
                         "35ebc759928255c225a668cafb3c7f95a3457ae88c3f4c2b2be825993bdb2220"},
                        {(int64_t{1} << 32) + 192, 4294969117,
                         "dca470878139bac73c86df12334341b97e153f5520a6f2661e55ca8c8a82f77f"}};
  const std::vector<char> zeros(1 << 20);
  for (const Case& c : cases) {
    std::string around;
    int64_t at = 0;
    write_tensor_archive(
        DType::kU8, {c.num_elements},
        [&](const ByteSink& sink) {
          const auto piece = static_cast<int64_t>(zeros.size());
          for (int64_t i = 0; i < c.num_elements; i += piece) {
            sink(zeros.data(), std::min(piece, c.num_elements - i));
          }
        },
        64,
        [&](const void* p, int64_t n) {
          if (at < kHead || at >= kHead + c.num_elements) {
            ASSERT_TRUE(at >= kHead || at + n <= kHead);  // elements come in writes of their own
            around.append(static_cast<const char*>(p), static_cast<size_t>(n));
          }
          at += n;
        });
    EXPECT_EQ(at, c.size);
    EXPECT_EQ(sha256_hex(around), c.sha256) << c.num_elements;

    // Read where the elements are a hole of a file.
    const std::string path =
        str_cat(::testing::TempDir(), "fathom_zip_test_", ::getpid(), "_", c.num_elements);
    std::fstream(path, std::ios::out | std::ios::binary).write(around.data(), kHead);
    std::filesystem::resize_file(path, static_cast<uintmax_t>(kHead + c.num_elements));
    std::ofstream(path, std::ios::app | std::ios::binary)
        .write(around.data() + kHead, std::ssize(around) - kHead);
    {
      const MappedFile file(path);
      const TensorView view = read_tensor_archive({file.data(), static_cast<size_t>(file.size())},
                                                  path, /*verify=*/true,
                                                  /*verify_elements=*/false);
      EXPECT_EQ(view.shape, std::vector<int64_t>{c.num_elements});
      EXPECT_EQ(view.data.data() - file.data(), kHead);
    }
    std::filesystem::remove(path);
  }
}

TEST(TorchArchiveTest, WhatIsWrittenReadsBack) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kI32, DType::kF8E4M3, DType::kBool}) {
    for (const std::vector<int64_t>& shape :
         std::vector<std::vector<int64_t>>{{}, {1}, {5, 7}, {1, 4, 6}, {0, 4}, {3, 1, 2, 1, 5}}) {
      for (int64_t alignment : {64, 4096}) {
        const std::string data = pattern(dtype, shape);
        const std::string bytes = archive_of(dtype, shape, data, alignment);
        const TensorView view = read_tensor_archive(span_of(bytes), "test", true);
        EXPECT_EQ(view.dtype, dtype);
        EXPECT_EQ(view.shape, shape);
        ASSERT_EQ(view.data.size(), data.size());
        EXPECT_EQ(std::memcmp(view.data.data(), data.data(), data.size()), 0);
        EXPECT_EQ((view.data.data() - span_of(bytes).data()) % alignment, 0);
      }
    }
  }
}

TEST(TorchArchiveTest, EveryTruncationIsAnError) {
  const std::string bytes = archive_of(DType::kF32, {4}, pattern(DType::kF32, {4}));
  for (size_t n = 0; n < bytes.size(); ++n) {
    const std::string part = bytes.substr(0, n);
    EXPECT_THROW(read_tensor_archive(span_of(part), "test", true), UserError) << n;
  }
}

TEST(TorchArchiveTest, NoByteChangeIsACrashAndDataChangesAreFound) {
  const std::string data = pattern(DType::kF32, {4});
  const std::string bytes = archive_of(DType::kF32, {4}, data);
  const TensorView whole = read_tensor_archive(span_of(bytes), "test", true);
  const auto start = static_cast<size_t>(whole.data.data() - span_of(bytes).data());
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int change : {1, 0x80, 0xFF}) {
      std::string bad = bytes;
      bad[i] = static_cast<char>(bad[i] ^ change);
      try {
        // A change that is not seen may only be one that does not matter.
        const TensorView view = read_tensor_archive(span_of(bad), "test", true);
        EXPECT_EQ(view.shape, std::vector<int64_t>{4});
        EXPECT_EQ(std::string(view.data.begin(), view.data.end()), data) << i;
        EXPECT_FALSE(i >= start && i < start + data.size()) << i;
      } catch (const UserError&) {
      }
    }
  }
}

// A small archive with chosen records.
std::string archive_with(const std::vector<std::pair<std::string, std::string>>& records) {
  std::string out;
  TorchArchiveWriter w("archive", [&](const void* p, int64_t n) {
    out.append(static_cast<const char*>(p), static_cast<size_t>(n));
  });
  for (const auto& [name, data] : records) w.add(name, data);
  w.finish();
  return out;
}

// A tensor archive whose pickle says what it is told.
std::string lying_tensor(const char* storage, int64_t storage_count, int64_t offset,
                         const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                         const char* function = "_rebuild_tensor_v2") {
  PickleWriter w(true);
  w.global("torch._utils", function);
  w.mark();
  w.mark();
  w.string("storage");
  w.global("torch", storage);
  w.string("0");
  w.string("cpu");
  w.integer(storage_count);
  w.tuple_from_mark();
  w.persistent_id();
  w.integer(offset);
  w.integers(shape);
  w.integers(strides);
  w.boolean(false);
  w.global("collections", "OrderedDict");
  w.empty_tuple();
  w.reduce();
  w.tuple_from_mark();
  w.reduce();
  return archive_with(
      {{"data.pkl", w.finish()}, {"data/0", std::string(16, 'x')}, {"version", "3\n"}});
}

TEST(TorchArchiveTest, TensorsThatLieAboutTheirStorageAreErrors) {
  const auto read = [](const std::string& bytes) {
    return error_of([&] { read_tensor_archive(span_of(bytes), "x", true); });
  };
  const int64_t huge = int64_t{1} << 62;
  EXPECT_EQ(read(lying_tensor("FloatStorage", 4, 0, {2, 2}, {2, 1})), "no error");
  EXPECT_EQ(read(lying_tensor("FloatStorage", 4, 1, {3}, {1})), "no error");
  for (const std::string& bytes :
       {lying_tensor("FloatStorage", 5, 0, {4}, {1}),
        lying_tensor("FloatStorage", huge, 0, {4}, {1}),
        lying_tensor("FloatStorage", -1, 0, {4}, {1}), lying_tensor("FloatStorage", 4, 1, {4}, {1}),
        lying_tensor("FloatStorage", 4, -1, {4}, {1}),
        lying_tensor("FloatStorage", 4, huge, {4}, {1}),
        lying_tensor("FloatStorage", 4, 0, {huge, huge}, {huge, 1}),
        lying_tensor("FloatStorage", 4, 0, {-1}, {1}),
        lying_tensor("FloatStorage", 4, 0, {4}, {-1}),
        lying_tensor("FloatStorage", 4, 0, {2, 2}, {1, 2}),
        lying_tensor("FloatStorage", 4, 0, {4}, {1, 1}),
        lying_tensor("ComplexFloatStorage", 2, 0, {2}, {1}),
        lying_tensor("FloatStorage", 4, 0, {4}, {1}, "_rebuild_tensor_v3")}) {
    EXPECT_NE(read(bytes).find("the pickle cannot be used"), std::string::npos) << read(bytes);
  }
}

TEST(TorchArchiveTest, HostileArchivesAreErrorsThatSayWhy) {
  const auto read = [](const std::string& bytes) {
    return error_of([&] { TorchArchiveReader(span_of(bytes), "x.distcp", 8); });
  };
  EXPECT_EQ(read(archive_with({{"version", "3\n"}})), "no error");
  EXPECT_NE(read(archive_with({{"data.pkl", "x"}})).find("no version record"), std::string::npos);
  EXPECT_NE(read(archive_with({{"version", "3\n"}, {"constants.pkl", "x"}})).find("TorchScript"),
            std::string::npos);
  EXPECT_NE(read(archive_with({{"version", "3\n"}, {"../x", "x"}})).find("name"),
            std::string::npos);
  EXPECT_NE(read(archive_with({{"version", "3\n"}, {"version", "3\n"}})).find("two entries"),
            std::string::npos);
  EXPECT_NE(read(archive_with({{"version", "3\n"}, {"byteorder", "big"}})).find("byte order 'big'"),
            std::string::npos);
  std::vector<std::pair<std::string, std::string>> many = {{"version", "3\n"}};
  for (int i = 0; i < 10; ++i) many.emplace_back(str_cat("data/", i), "");
  EXPECT_NE(read(archive_with(many)).find("12 entries (1 to 8 are allowed)"), std::string::npos);
  EXPECT_NE(read("").find("no end record"), std::string::npos);
  EXPECT_NE(read(archive_with({{"version", "3\n"}}) + "x").find("x.distcp"), std::string::npos);
}

}  // namespace
}  // namespace fathom
