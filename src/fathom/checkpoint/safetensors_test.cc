#include "fathom/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "fathom/base/error.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/safetensors_writer.h"
#include "fathom/checkpoint/shards.h"

namespace fathom {
namespace {

std::string temp_dir(const std::string& name) {
  const std::string path = ::testing::TempDir() + "fathom_safetensors_" + name;
  std::filesystem::remove_all(path);
  make_directories(path);
  return path;
}

// A file with this header text and that many data bytes.
std::string file_of(const std::string& header, size_t num_data_bytes = 0) {
  std::string bytes(8, '\0');
  const uint64_t n = header.size();
  std::memcpy(bytes.data(), &n, 8);
  return bytes + header + std::string(num_data_bytes, 'd');
}

std::string problem_of(const std::string& bytes) {
  try {
    parse_safetensors(bytes, "x.safetensors");
  } catch (const UserError& e) {
    return e.what();
  }
  return "accepted";
}

void expect_problem(const std::string& bytes, const std::string& part) {
  const std::string text = problem_of(bytes);
  EXPECT_NE(text.find(part), std::string::npos) << "expected \"" << part << "\" in: " << text;
  EXPECT_EQ(text.find("x.safetensors"), 0u) << text;
}

std::string one_tensor(const std::string& dtype, const std::string& shape, int64_t end) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[0,)" +
         std::to_string(end) + "]}}";
}

TEST(SafetensorsTest, WellFormedFilesAreAccepted) {
  const auto header = parse_safetensors(file_of(R"(  {"__metadata__":{"format":"pt","k":""},
                "b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},
                "a":{"shape":[],"data_offsets":[0,4],"dtype":"I32"},
                "empty":{"dtype":"BF16","shape":[7,0],"data_offsets":[28,28]},
                "four":{"dtype":"F4","shape":[3,2],"data_offsets":[28,31]}}   )",
                                                31),
                                        "x");
  ASSERT_EQ(header.tensors.size(), 4u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_TRUE(header.tensors[0].shape.empty());
  EXPECT_EQ(header.tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header.tensors[1].num_bytes(), 24);
  EXPECT_EQ(header.tensors[1].type->dtype, DType::kF32);
  EXPECT_FALSE(header.tensors[3].type->dtype.has_value());
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_TRUE(header.warnings.empty());
  EXPECT_EQ(problem_of(file_of("{}")), "accepted");
}

TEST(SafetensorsTest, UnknownMembersAreIgnoredWithAWarning) {
  const auto header = parse_safetensors(
      file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{"y":[1,-2.5,"s"]}}})", 1),
      "x");
  ASSERT_EQ(header.warnings.size(), 1u);
  EXPECT_NE(header.warnings[0].find("\"x\""), std::string::npos);
}

TEST(SafetensorsTest, LengthsThatDoNotFitAreRefused) {
  expect_problem("", "0 bytes is too short");
  expect_problem("1234567", "7 bytes is too short");
  expect_problem(std::string(8, '\0'), "header");
  expect_problem(file_of("{}").substr(0, 9), "truncated");
  std::string huge(8, '\xFF');
  expect_problem(huge + "{}", "above the limit");
  const uint64_t above = 100'000'001;
  std::memcpy(huge.data(), &above, 8);
  expect_problem(huge + "{}", "above the limit");
}

TEST(SafetensorsTest, HeadersThatAreNotStrictJsonAreRefused) {
  expect_problem(file_of("\xEF\xBB\xBF{}"), "byte order mark");
  expect_problem(file_of(std::string("{}\0  ", 5)), "NUL");
  expect_problem(file_of("{\"a\xFF\":{}}"), "not valid JSON");
  expect_problem(file_of("{} {}"), "not valid JSON");
  expect_problem(file_of("{/**/}"), "not valid JSON");
  expect_problem(file_of(R"({"a":{"dtype":"U8","shape":[1,],"data_offsets":[0,1]}})", 1),
                 "not valid JSON");
  expect_problem(file_of(R"({"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}})", 1),
                 "not valid JSON");
  expect_problem(file_of("[]"), "must be a JSON object");
  expect_problem(file_of("3"), "must be a JSON object");
  expect_problem(file_of("\"a\""), "must be a JSON object");
  expect_problem(file_of(R"({"a":[]})"), "must be an object");
  expect_problem(file_of(R"({"a\u0000b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"), "NUL");
  std::string deep = R"({"a":{"x":)" + std::string(100'000, '[');
  expect_problem(file_of(deep), "nested deeper");
}

TEST(SafetensorsTest, RepeatedKeysAreRefusedAtEveryLevel) {
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  expect_problem(file_of("{\"a\":" + entry + ",\"a\":" + entry + "}", 1), "\"a\" appears twice");
  expect_problem(
      file_of("{\"a\":" + entry + R"(,"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2),
      "\"a\" appears twice");
  expect_problem(
      file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
      "\"dtype\" appears twice");
  expect_problem(file_of(R"({"__metadata__":{"k":"1","k":"1"}})"), "\"k\" appears twice");
  expect_problem(file_of(R"({"__metadata__":{},"__metadata__":{}})"), "appears twice");
  expect_problem(
      file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{"y":1,"y":1}}})", 1),
      "\"y\" appears twice");
}

TEST(SafetensorsTest, MembersMustBePresentAndOfTheirType) {
  expect_problem(file_of(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1), "dtype is missing");
  expect_problem(file_of(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1), "shape is missing");
  expect_problem(file_of(R"({"a":{"dtype":"U8","shape":[1]}})", 1), "data_offsets is missing");
  expect_problem(file_of(R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1),
                 "dtype must be a string");
  expect_problem(file_of(one_tensor("U9", "[1]", 1), 1), "unknown dtype \"U9\"");
  expect_problem(file_of(one_tensor("U8", "1", 1), 1), "shape must be a list");
  for (const char* dim :
       {"-1", "1.0", "1e0", "\"1\"", "null", "true", "[1]", "{}", "18446744073709551616"}) {
    expect_problem(file_of(one_tensor("U8", str_cat("[", dim, "]"), 1), 1), "must hold whole");
  }
  expect_problem(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1),
                 "must hold 2 numbers, got 1");
  expect_problem(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1),
                 "must hold 2 numbers, got 3");
  expect_problem(file_of(one_tensor("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", 1), 1),
                 "more than 16");
  expect_problem(file_of(R"({"__metadata__":{"k":1}})"), "must be a string");
  expect_problem(file_of(R"({"__metadata__":{"k":{}}})"), "must be a string");
  expect_problem(file_of(R"({"__metadata__":"k"})"), "must be an object");
}

TEST(SafetensorsTest, ShapesThatOverflowOrDoNotMatchTheirBytesAreRefused) {
  expect_problem(file_of(one_tensor("U8", "[2,18446744073709551614]", 4), 4), "too large");
  expect_problem(file_of(one_tensor("U8", "[2,9223372036854775807]", 4), 4), "too large");
  expect_problem(file_of(one_tensor("F32", "[2,9223372036854775807]", 4), 4), "too large");
  expect_problem(file_of(one_tensor("U8", "[4294967296,4294967296]", 0)), "too large");
  expect_problem(file_of(one_tensor("F4", "[3]", 2), 2), "not a whole number of bytes");
  expect_problem(file_of(one_tensor("F32", "[2]", 4), 4), "takes 8 bytes, data_offsets give 4");
  expect_problem(file_of(one_tensor("F32", "[]", 0)), "takes 4 bytes, data_offsets give 0");
}

TEST(SafetensorsTest, EveryByteBelongsToOneTensor) {
  auto two = [](int b0, int e0, int b1, int e1, size_t size) {
    return file_of(str_cat(R"({"a":{"dtype":"U8","shape":[)", e0 - b0, R"(],"data_offsets":[)", b0,
                           ",", e0, R"(]},"b":{"dtype":"U8","shape":[)", e1 - b1,
                           R"(],"data_offsets":[)", b1, ",", e1, "]}}"),
                   size);
  };
  EXPECT_EQ(problem_of(two(0, 4, 4, 8, 8)), "accepted");
  expect_problem(two(0, 4, 3, 7, 7), "overlap");
  expect_problem(two(0, 4, 0, 4, 4), "overlap");
  expect_problem(two(0, 4, 5, 8, 8), "hole");
  expect_problem(two(1, 4, 4, 8, 8), "hole");
  expect_problem(two(0, 4, 4, 8, 9), "extra bytes");
  expect_problem(two(0, 4, 4, 8, 7), "truncated");
  expect_problem(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}})", 2),
                 "run from 2 to 1");
  expect_problem(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,)"
                         R"(18446744073709551615]}})",
                         1),
                 "data_offsets run from");
}

TEST(SafetensorsTest, EveryTruncationOfARealFileIsRefused) {
  const std::string bytes =
      read_file(std::string(FATHOM_SOURCE_DIR) +
                "/tests/golden/small_official/model/model-00002-of-00003.safetensors");
  EXPECT_EQ(problem_of(bytes), "accepted");
  for (size_t n = 0; n < bytes.size(); n += 1 + bytes.size() / 199) {
    EXPECT_NE(problem_of(bytes.substr(0, n)), "accepted") << n;
  }
  EXPECT_NE(problem_of(bytes + "x"), "accepted");
}

// Whatever the bytes, the answer is a header or a UserError; accepted tensors lie inside the file.
TEST(SafetensorsTest, DamagedHeadersNeverDoMoreThanFail) {
  const std::string good =
      file_of(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],)"
              R"("data_offsets":[0,24]},"b":{"dtype":"F8_E4M3","shape":[8],)"
              R"("data_offsets":[24,32],"x":[1,{"y":null}]}} )",
              32);
  const std::string alphabet = std::string("{}[]\":,0123456789-.eEtfnaU \\\xFF\x80") + '\0';
  std::mt19937 random(7);
  int num_accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = good;
    for (int change = 0; change < 1 + round % 4; ++change) {
      const size_t at = random() % bytes.size();
      switch (random() % 3) {
        case 0:
          bytes[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          bytes.erase(at, 1 + random() % 5);
          break;
        default:
          bytes.insert(at, 1, alphabet[random() % alphabet.size()]);
      }
      if (bytes.empty()) bytes = "x";
    }
    if (bytes.size() >= 8 && round % 2 == 0) {  // the length still fits, so the JSON is reached
      const uint64_t n = bytes.size() - 8 - std::min<size_t>(32, bytes.size() - 8);
      std::memcpy(bytes.data(), &n, 8);
    }
    try {
      for (const TensorEntry& t : parse_safetensors(bytes, "x").tensors) {
        ASSERT_GE(t.begin, 8);
        ASSERT_LE(t.begin, t.end);
        ASSERT_LE(t.end, static_cast<int64_t>(bytes.size()));
      }
      ++num_accepted;
    } catch (const UserError&) {
    }
  }
  EXPECT_GT(num_accepted, 0);
}

Tensor filled(std::vector<int64_t> shape, DType dtype, uint8_t seed) {
  Tensor t = Tensor::empty(std::move(shape), dtype);
  for (int64_t i = 0; i < t.num_bytes(); ++i) t.bytes()[i] = static_cast<uint8_t>(seed + i);
  return t;
}

TEST(SafetensorsWriterTest, WhatIsWrittenReadsBack) {
  const std::string dir = temp_dir("write");
  const std::string path = dir + "/t.safetensors";
  const std::vector<std::pair<std::string, Tensor>> tensors = {
      {"z", filled({3}, DType::kU8, 1)},
      {"b", filled({2, 2}, DType::kF32, 2)},
      {"a\"q", filled({}, DType::kF32, 3)},
      {"id", filled({2}, DType::kI64, 4)},
      {"none", filled({0, 5}, DType::kBF16, 5)}};
  write_safetensors(path, tensors);
  const SafetensorsFile file(path);
  ASSERT_EQ(file.tensors().size(), 5u);
  for (const auto& [name, tensor] : tensors) {
    const Tensor read = file.read(name);
    EXPECT_EQ(read.shape(), tensor.shape());
    EXPECT_EQ(read.dtype(), tensor.dtype());
    EXPECT_EQ(0, std::memcmp(read.bytes(), tensor.bytes(), static_cast<size_t>(read.num_bytes())));
    // The order and the padding keep every tensor aligned.
    EXPECT_EQ(file.find(name)->begin % dtype_size(tensor.dtype()), 0) << name;
  }
  EXPECT_EQ(file.tensors().front().name, "id");
  EXPECT_EQ(file.tensors().back().name, "z");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_THROW(file.read("nowhere"), UserError);
}

TEST(SafetensorsWriterTest, AnUnfinishedFileNeverAppears) {
  const std::string dir = temp_dir("unfinished");
  {
    SafetensorsWriter writer(dir + "/t.safetensors", {{"a", DType::kU8, {4}}});
    const int two = 0;
    writer.write("a", &two, 2);
    EXPECT_THROW(writer.finish(), InternalError);
    EXPECT_THROW(writer.write("b", &two, 1), InternalError);
    EXPECT_THROW(writer.write("a", &two, 3), InternalError);
  }
  EXPECT_TRUE(list_directory(dir).empty());
}

TEST(SafetensorsWriterTest, ShardsAreNumberedFromOne) {
  EXPECT_EQ(shard_file_name(2, 3), "model-00003-of-00003.safetensors");
  EXPECT_EQ(shard_file_name(0, 1), "model.safetensors");
}

class ShardsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = temp_dir("shards");
    write_safetensors(dir_ + "/m-1.safetensors", {{"a", filled({2}, DType::kU8, 1)}});
    write_safetensors(dir_ + "/m-2.safetensors", {{"b", filled({3}, DType::kU8, 2)}});
    write_safetensors_index(dir_, {{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}}, 5);
  }
  void write_index(const std::string& text) { write_file_atomic(dir_ + "/" + kIndexName, text); }
  void expect_problem(const std::string& part) {
    try {
      TensorShards shards(dir_);
      FAIL() << "accepted; expected " << part;
    } catch (const UserError& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  }
  std::string dir_;
};

TEST_F(ShardsTest, TensorsAreFoundThroughTheIndex) {
  const TensorShards shards(dir_);
  EXPECT_TRUE(shards.has_index());
  EXPECT_EQ(shards.tensors().size(), 2u);
  EXPECT_EQ(shards.total_bytes(), 5);
  EXPECT_EQ(shards.find("b")->data()[0], 2);
  EXPECT_EQ(shards.find("c"), nullptr);
  EXPECT_TRUE(shards.warnings().empty());
  const TensorShards golden(std::string(FATHOM_SOURCE_DIR) + "/tests/golden/small_base/model");
  EXPECT_EQ(golden.files().size(), 3u);
  EXPECT_EQ(golden.total_bytes(), 2218676);
}

TEST_F(ShardsTest, ATensorInTwoShardsIsTakenFromTheMappedOne) {
  write_safetensors(dir_ + "/m-1.safetensors",
                    {{"a", filled({2}, DType::kU8, 1)}, {"b", filled({3}, DType::kU8, 9)}});
  const TensorShards shards(dir_);
  EXPECT_EQ(shards.find("b")->data()[0], 2);
  ASSERT_EQ(shards.warnings().size(), 1u);
  EXPECT_NE(shards.warnings()[0].find("b in m-1.safetensors"), std::string::npos);
}

TEST_F(ShardsTest, BrokenIndexesAreRefused) {
  for (const char* name : {"../m-1.safetensors", "/etc/m.safetensors", "d\\\\m.safetensors",
                           "C:m.safetensors", ".safetensors", "m-1.bin", "m\\u0000.safetensors"}) {
    write_index(str_cat(R"({"weight_map":{"a":")", name, "\"}}"));
    expect_problem("is not the name of a .safetensors file");
  }
  write_index(R"({"weight_map":{"a":"m-3.safetensors"}})");
  expect_problem("the shard m-3.safetensors is missing");
  write_index(R"({"weight_map":{"b":"m-1.safetensors"}})");
  expect_problem("tensor b should be in m-1.safetensors");
  write_index(R"({"weight_map":{"a":1}})");
  expect_problem("must be a string");
  write_index(R"({"weight_map":{}})");
  expect_problem("weight_map");
  write_index(R"({"weight_map":{"a":"m-1.safetensors","a":"m-2.safetensors"}})");
  expect_problem("\"a\" appears twice");
  write_index("{");
  expect_problem("not valid JSON");
}

TEST_F(ShardsTest, ShardsWithoutAnIndexAreAnUnfinishedDirectory) {
  std::filesystem::remove(dir_ + "/" + kIndexName);
  expect_problem("did not finish");
  std::filesystem::remove(dir_ + "/m-1.safetensors");
  std::filesystem::remove(dir_ + "/m-2.safetensors");
  expect_problem("neither");
  write_safetensors(dir_ + "/model.safetensors", {{"a", filled({2}, DType::kU8, 1)}});
  EXPECT_EQ(TensorShards(dir_).tensors().size(), 1u);
  EXPECT_EQ(TensorShards(dir_ + "/model.safetensors").tensors().size(), 1u);
}

}  // namespace
}  // namespace fathom
