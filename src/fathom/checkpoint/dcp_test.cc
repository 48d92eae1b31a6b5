#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_reader.h"
#include "fathom/checkpoint/dcp_writer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// pickle.dumps(metadata, 4) of torch 2.11.0 on CPython 3.11, where metadata is a Metadata with
//   w: bfloat16 [2, 3] in two chunks [1, 3]; s: int64 []; x/shard_0_1: bytes;
//   planner_data None, storage_meta with a PosixPath, and Megatron's attribute all_local_plans.
constexpr const char* kPythonMetadata =
    "80049572050000000000008c25746f7263682e64697374726962757465642e636865636b706f696e742e6d65746164"
    "61"
    "7461948c084d657461646174619493942981947d94288c1373746174655f646963745f6d65746164617461947d9428"
    "8c"
    "01779468008c1554656e736f7253746f726167654d657461646174619493942981947d94288c0a70726f7065727469"
    "65"
    "739468008c1054656e736f7250726f70657274696573949394298194288c05746f726368948c0862666c6f61743136"
    "94"
    "93948c13746f7263682e73657269616c697a6174696f6e948c0b5f6765745f6c61796f75749493948c0d746f726368"
    "2e"
    "7374726964656494859452948968008c145f4d454d5f464f524d41545f454e434f44494e479493944b008594529489"
    "74"
    "94628c0473697a65948c05746f726368948c0453697a659493944b024b038694859452948c066368756e6b73945d94"
    "28"
    "68008c144368756e6b53746f726167654d657461646174619493942981947d94288c076f6666736574739468214b00"
    "4b"
    "008694859452948c0573697a65739468214b014b03869485945294756268282981947d9428682b68214b014b008694"
    "85"
    "945294682f68214b014b0386948594529475626575628c01739468092981947d9428680c680e2981942868108c0569"
    "6e"
    "743634949394681889681c89749462681e6821298594529468255d9468282981947d9428682b68212985945294682f"
    "68"
    "21298594529475626175628c0b782f73686172645f305f319468008c14427974657353746f726167654d6574616461"
    "74"
    "61949394298194758c0c706c616e6e65725f64617461944e8c0c73746f726167655f64617461947d942868008c0d4d"
    "65"
    "746164617461496e6465789493942981947d94288c0366716e9468078c05696e646578944e8c066f66667365749468"
    "21"
    "4b014b0086948594529475628c27746f7263682e64697374726962757465642e636865636b706f696e742e66696c65"
    "73"
    "797374656d948c0c5f53746f72616765496e666f9493942981947d94288c0d72656c61746976655f70617468948c0c"
    "5f"
    "5f315f302e6469737463709468584b008c066c656e677468944d6906756268532981947d94286856680768574b0768"
    "58"
    "68214b004b008694859452947562685e2981947d942868618c0c5f5f305f302e6469737463709468588a0500000000"
    "02"
    "68634d6906756268532981947d94286856683b68574e6858682129859452947562685e2981947d94286861686b6858"
    "4b"
    "0068634de905756268532981947d94286856684b68574e7562685e2981947d94286861686b68584de90568634de703"
    "75"
    "62758c0c73746f726167655f6d6574619468008c0b53746f726167654d6574619493942981947d94288c0d63686563"
    "6b"
    "706f696e745f6964948c07706174686c6962948c09506f736978506174689493948c012f948c0161948c0162948794"
    "52"
    "948c07736176655f6964948c026964948c076c6f61645f6964944e8c076d6f64756c6573945d9475628c0776657273"
    "69"
    "6f6e948c05312e302e30948c0f616c6c5f6c6f63616c5f706c616e73945d948c24746f7263682e6469737472696275"
    "74"
    "65642e636865636b706f696e742e706c616e6e6572948c0853617665506c616e9493942981947d94288c056974656d"
    "73"
    "945d94688d8c0957726974654974656d9493942981947d9428685768532981947d94286856680768574e685868214b"
    "00"
    "4b0086948594529475628c047479706594688d8c0d57726974654974656d547970659493944b02859452948c0d6279"
    "74"
    "65735f696f5f64617461944e8c0b74656e736f725f6461746194688d8c0f54656e736f725772697465446174619493"
    "94"
    "2981947d94288c056368756e6b946829680c680f681e68214b024b03869485945294756275626168504e684f4e8c06"
    "75"
    "7361626c65948875626175622e";

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
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

class DcpTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() /
           str_cat("fathom_dcp_test_", ::getpid(), "_",
                   ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }

  // A checkpoint "c" of a matrix [6, 8] of int32 0, 1, 2, ... in four boxes over two files, a
  // scalar and a tensor without elements.
  std::string write_small() {
    PendingDirectory pending(dir_.string(), "c");
    DcpWriter::Options options;
    options.max_file_bytes = 2500;
    options.page_aligned_from = 100;
    DcpWriter w(pending, options);
    for (int64_t r : {3, 0}) {
      for (int64_t c : {0, 5}) {
        const int64_t cols = c == 0 ? 5 : 3;
        std::vector<int32_t> box;
        for (int64_t i = 0; i < 3; ++i) {
          for (int64_t j = 0; j < cols; ++j) {
            box.push_back(static_cast<int32_t>((r + i) * 8 + c + j));
          }
        }
        w.add_chunk("m", DType::kI32, {6, 8}, {r, c}, {3, cols}, box.data());
      }
    }
    const float scalar = 2.5f;
    w.add("scalar", DType::kF32, {}, &scalar);
    w.add("nothing", DType::kBF16, {0, 4}, nullptr);
    w.add_alias("same", "scalar");
    write_dcp_headers(pending, w.finish(), "c", "one",
                      encode_common_pt({{"num_layers", 4}}, 7, false));
    pending.publish();
    return path("c");
  }

  fs::path dir_;
};

void overwrite(const std::string& path, int64_t at, std::string_view bytes) {
  std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
  f.seekp(at);
  f.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

TEST(DcpMetadataTest, ReadsWhatPythonPickles) {
  const DcpMetadata m = decode_dcp_metadata(from_hex(kPythonMetadata), "py");
  ASSERT_EQ(m.tensors.size(), 2u);
  const DcpTensor& w = m.tensors.at("w");
  EXPECT_EQ(w.dtype, DType::kBF16);
  EXPECT_EQ(w.shape, (std::vector<int64_t>{2, 3}));
  ASSERT_EQ(w.chunks.size(), 2u);
  EXPECT_EQ(w.chunks[0].offsets, (std::vector<int64_t>{0, 0}));
  EXPECT_EQ(w.chunks[0].file, "__0_0.distcp");
  EXPECT_EQ(w.chunks[0].offset, int64_t{1} << 33);
  EXPECT_EQ(w.chunks[0].length, 1641);
  EXPECT_EQ(w.chunks[1].offsets, (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(w.chunks[1].file, "__1_0.distcp");
  EXPECT_EQ(m.tensors.at("s").dtype, DType::kI64);
  EXPECT_TRUE(m.tensors.at("s").shape.empty());
  EXPECT_EQ(m.bytes.at("x/shard_0_1").offset, 1513);
  EXPECT_EQ(m.save_id, "id");
}

TEST(DcpMetadataTest, EveryChangedByteIsAnErrorOrStaysReadable) {
  const std::string good = from_hex(kPythonMetadata);
  for (size_t n = 0; n < good.size(); ++n) {
    EXPECT_NE(error_of([&] { decode_dcp_metadata(good.substr(0, n), "py"); }), "no error") << n;
    for (int change : {1, 0x20, 0xFF}) {
      std::string bad = good;
      bad[n] = static_cast<char>(bad[n] ^ change);
      error_of([&] { decode_dcp_metadata(bad, "py"); });  // no crash
    }
  }
}

TEST(DcpMetadataTest, GoesThroughUnchanged) {
  const DcpMetadata m = decode_dcp_metadata(from_hex(kPythonMetadata), "py");
  const std::string bytes = encode_dcp_metadata(m);
  const DcpMetadata again = decode_dcp_metadata(bytes, "ours");
  EXPECT_EQ(encode_dcp_metadata(again), bytes);
  EXPECT_EQ(again.tensors.at("w").chunks[0].offset, int64_t{1} << 33);
  EXPECT_EQ(again.bytes.at("x/shard_0_1").length, 999);
}

TEST(DcpMetadataTest, CoverIsCheckedChunkByChunk) {
  const auto check = [](const std::vector<DcpChunk>& chunks) {
    DcpMetadata m;
    m.tensors["t"] = {DType::kF32, {4, 4}, chunks};
    int64_t at = 0;
    for (DcpChunk& c : m.tensors["t"].chunks) {
      c.file = "__0_0.distcp";
      c.offset = 100 * at++;
      c.length = 100;
    }
    return error_of([&] { validate_dcp_metadata(m, {{"__0_0.distcp", 1000}}, "dir"); });
  };
  EXPECT_EQ(check({{{0, 0}, {4, 4}, "", 0, 0}}), "no error");
  EXPECT_EQ(check({{{0, 0}, {2, 4}, "", 0, 0}, {{2, 0}, {2, 4}, "", 0, 0}}), "no error");
  EXPECT_EQ(check({{{0, 2}, {4, 2}, "", 0, 0}, {{0, 0}, {4, 2}, "", 0, 0}}), "no error");
  EXPECT_NE(check({{{0, 0}, {2, 4}, "", 0, 0}}).find("cover 8 of 16"), std::string::npos);
  EXPECT_NE(check({{{0, 0}, {2, 4}, "", 0, 0}, {{1, 0}, {2, 4}, "", 0, 0}}).find("overlap"),
            std::string::npos);
  EXPECT_NE(check({{{0, 0}, {4, 4}, "", 0, 0}, {{0, 0}, {1, 1}, "", 0, 0}}).find("more than"),
            std::string::npos);
  EXPECT_NE(check({{{2, 0}, {3, 4}, "", 0, 0}}).find("out of bounds"), std::string::npos);
  EXPECT_NE(check({{{0}, {4}, "", 0, 0}}).find("dimensions"), std::string::npos);
}

TEST(DcpMetadataTest, FileNamesStayInTheDirectory) {
  EXPECT_TRUE(is_dcp_file_name("__0_0.distcp"));
  for (const char* name : {"", ".distcp", "../__0_0.distcp", "a/b.distcp", "/x.distcp", "x.distcp/",
                           "x.pt", "x\n.distcp"}) {
    EXPECT_FALSE(is_dcp_file_name(name)) << name;
  }
}

TEST_F(DcpTest, WholeTensorsAndAnyBoxReadBack) {
  DcpReader reader(write_small());
  const Tensor m = reader.read("m");
  ASSERT_EQ(m.shape(), (std::vector<int64_t>{6, 8}));
  for (int32_t i = 0; i < 48; ++i) EXPECT_EQ(m.i32()[i], i);
  for (int64_t r0 = 0; r0 < 6; ++r0) {
    for (int64_t r1 = r0; r1 <= 6; ++r1) {
      for (int64_t c0 = 0; c0 < 8; ++c0) {
        for (int64_t c1 = c0; c1 <= 8; ++c1) {
          std::vector<int32_t> box(static_cast<size_t>((r1 - r0) * (c1 - c0)) + 1, -1);
          reader.read_box("m", {r0, c0}, {r1 - r0, c1 - c0}, box.data());
          size_t at = 0;
          for (int64_t r = r0; r < r1; ++r) {
            for (int64_t c = c0; c < c1; ++c) ASSERT_EQ(box[at++], r * 8 + c);
          }
          ASSERT_EQ(box[at], -1);
        }
      }
    }
  }
  EXPECT_EQ(reader.read("scalar").f32()[0], 2.5f);
  EXPECT_EQ(reader.read("same").f32()[0], 2.5f);
  EXPECT_EQ(reader.read("nothing").numel(), 0);
  const Json common = reader.read_common();
  EXPECT_EQ(common["args"]["num_layers"], 4);
  EXPECT_EQ(common["iteration"], 7);
  EXPECT_GT(list_directory(path("c")).size(), 5u);  // several .distcp files
}

// tests/golden/python_dcp/make.py wrote it with PyTorch, from two ranks.
TEST(PythonCheckpointTest, EveryTensorReadsBack) {
  DcpReader reader(str_cat(FATHOM_SOURCE_DIR, "/tests/golden/python_dcp/checkpoint"));
  const Tensor rows = reader.read("rows");
  EXPECT_EQ(rows.shape(), (std::vector<int64_t>{5, 8}));
  for (int32_t i = 0; i < 40; ++i) EXPECT_EQ(rows.i32()[i], i);
  const Tensor cols = reader.read("cols");
  EXPECT_EQ(cols.shape(), (std::vector<int64_t>{3, 10}));
  for (int i = 0; i < 30; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(cols.u16()[i]) << 16);
    EXPECT_EQ(value, static_cast<float>(i));
  }
  const Tensor fp8 = reader.read("fp8");
  EXPECT_EQ(fp8.dtype(), DType::kF8E4M3);
  const uint8_t codes[] = {0x00, 0x38, 0x40, 0x44, 0x48, 0x4A, 0x4C};  // 0 to 6
  for (int i = 0; i < 24; ++i) EXPECT_EQ(fp8.bytes()[i], codes[i % 7]) << i;
  EXPECT_EQ(reader.read("scalar").f32()[0], 2.5f);
  EXPECT_EQ(reader.read("none").shape(), (std::vector<int64_t>{0, 4}));
  for (const char* key : {"view", "parameter"}) {
    const Tensor t = reader.read(key);
    for (int64_t i = 0; i < t.numel(); ++i) EXPECT_EQ(t.f32()[i], static_cast<float>(i)) << key;
  }
  EXPECT_TRUE(reader.metadata().bytes.contains("step"));
  EXPECT_FALSE(reader.contains("step"));
}

TEST_F(DcpTest, WrongRequestsSayWhatIsThere) {
  DcpReader reader(write_small());
  int32_t out[64];
  EXPECT_NE(error_of([&] { reader.read("x"); }).find("has no tensor x"), std::string::npos);
  EXPECT_NE(error_of([&] {
              reader.read_box("m", {4, 0}, {3, 8}, out);
            }).find("has the shape [6, 8]"),
            std::string::npos);
  EXPECT_NE(error_of([&] { reader.read_box("m", {0}, {3}, out); }).find("[6, 8]"),
            std::string::npos);
}

TEST_F(DcpTest, DamagedDirectoriesAreErrors) {
  const std::string c = write_small();
  const std::string data = c + "/__0_0.distcp";
  const auto open = [&] { return error_of([&] { DcpReader(c).read("m"); }); };
  EXPECT_EQ(open(), "no error");

  const DcpMetadata m = DcpReader(c).metadata();
  const DcpChunk& chunk = m.tensors.at("m").chunks[0];
  ASSERT_EQ(chunk.file, "__0_0.distcp");
  const std::string bytes = read_file(data);
  // The elements of the first box start with 24 = 0x18.
  const auto at = static_cast<int64_t>(bytes.find(std::string("\x18\0\0\0\x19\0\0\0", 8)));
  overwrite(data, at, "\x17");
  EXPECT_NE(open().find("is damaged: CRC"), std::string::npos) << open();
  overwrite(data, at, "\x18");
  EXPECT_EQ(open(), "no error");

  fs::resize_file(data, bytes.size() - 1);
  EXPECT_NE(open().find("cut off"), std::string::npos) << open();
  fs::remove(data);
  EXPECT_NE(open().find("cannot open"), std::string::npos) << open();
  std::ofstream(path("elsewhere")) << bytes;
  fs::create_symlink(path("elsewhere"), data);
  EXPECT_NE(open().find("not a regular file"), std::string::npos) << open();
  fs::remove(data);
  std::ofstream(data, std::ios::binary) << bytes;
  EXPECT_EQ(open(), "no error");

  fs::remove(c + "/metadata.json");
  EXPECT_NE(open().find("not a whole torch_dist checkpoint"), std::string::npos) << open();
  std::ofstream(c + "/metadata.json") << R"({"sharded_backend": "zarr"})";
  EXPECT_NE(open().find("zarr"), std::string::npos) << open();
}

TEST_F(DcpTest, TensorsThatAreNotCoveredAreNotWritten) {
  PendingDirectory pending(dir_.string(), "c");
  DcpWriter w(pending, {});
  const float row[4] = {};
  w.add_chunk("t", DType::kF32, {2, 4}, {1, 0}, {1, 4}, row);
  EXPECT_NE(error_of([&] { w.finish(); }).find("cover 4 of 8"), std::string::npos);
}

TEST_F(DcpTest, UnfinishedDirectoriesVanishAndAreNeverSeen) {
  {
    PendingDirectory pending(dir_.string(), "c");
    pending.write("x", "1");
    // A second writer is refused while the first one lives.
    EXPECT_NE(error_of([&] { PendingDirectory(dir_.string(), "d"); }).find("another process"),
              std::string::npos);
  }
  EXPECT_FALSE(fs::exists(path("c")));
  EXPECT_FALSE(fs::exists(path(".c.partial")));
  fs::create_directories(path(".old.partial"));  // a killed process's
  std::ofstream(path(".old.partial/__0_0.distcp")) << "half";
  PendingDirectory pending(dir_.string(), "c");
  EXPECT_FALSE(fs::exists(path(".old.partial")));
}

TEST_F(DcpTest, PublishingReplacesADirectoryOfThatName) {
  for (const char* text : {"1", "2"}) {
    PendingDirectory pending(dir_.string(), "c");
    pending.write("x", text);
    pending.publish();
    EXPECT_EQ(read_file(path("c/x")), text);
    EXPECT_FALSE(fs::exists(path(".c.partial")));
  }
}

TEST_F(DcpTest, TrackersAreResolved) {
  const std::string c = write_small();
  const auto resolve = [&] { return error_of([&] { resolve_checkpoint(dir_.string()); }); };
  EXPECT_EQ(resolve_checkpoint(c), c);
  EXPECT_NE(resolve().find("neither metadata.json"), std::string::npos);
  std::ofstream(tracker_path(dir_.string())) << "20\n";
  EXPECT_NE(resolve().find("iter_0000020 is not a whole"), std::string::npos);
  fs::rename(c, path("iter_0000020"));
  EXPECT_EQ(resolve_checkpoint(dir_.string()), path("iter_0000020"));
  std::ofstream(tracker_path(dir_.string())) << "release";
  fs::rename(path("iter_0000020"), path("release"));
  EXPECT_EQ(resolve_checkpoint(dir_.string()), path("release"));
  std::ofstream(tracker_path(dir_.string())) << "-1";
  EXPECT_NE(resolve().find("got \"-1\""), std::string::npos);
  EXPECT_EQ(iteration_name(12345678), "iter_12345678");
  EXPECT_EQ(parse_iteration_name("iter_0000020"), 20);
  EXPECT_EQ(parse_iteration_name("iter_20"), std::nullopt);
  EXPECT_EQ(parse_iteration_name("iter_00000020"), std::nullopt);
  EXPECT_EQ(parse_iteration_name("iter_000002x"), std::nullopt);
}

}  // namespace
}  // namespace fathom
