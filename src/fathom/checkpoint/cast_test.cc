#include "fathom/checkpoint/cast.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/hash.h"
#include "fathom/base/json.h"
#include "fathom/checkpoint/hub_files.h"
#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/safetensors_writer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
const std::string kGolden = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/";

class CastTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "fathom_cast_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    make_directories(root_);
    input_ = root_ + "/in";
    output_ = root_ + "/out";
  }
  void copy_golden(const std::string& name) { fs::copy(kGolden + name + "/model", input_); }
  PrepareSingleResult cast(NameDialect names = NameDialect::kSglang) {
    return prepare_single(ctx_, {.input = input_, .output = output_, .names = names});
  }
  std::string problem_of_cast() {
    try {
      cast();
    } catch (const UserError& e) {
      return e.what();
    }
    return "accepted";
  }
  static std::string hash_of(const std::string& path) { return sha256_hex(read_file(path)); }

  ThreadPool pool_{2};
  ExecContext ctx_{&pool_, CpuIsa::kAvx2};
  std::string root_, input_, output_;
};

TEST_F(CastTest, EveryTensorHasTheStatedBytesInEveryDialect) {
  for (const char* name : {"small_official", "small_base", "small_sgl"}) {
    const Json expected = read_json_file(kGolden + name + "/expected.json");
    for (const NameDialect dialect :
         {NameDialect::kOfficial, NameDialect::kSglang, NameDialect::kTransformers}) {
      input_ = kGolden + name + "/model";
      output_ = root_ + "/" + name + "_" + std::string(name_dialect_to_string(dialect));
      const PrepareSingleResult result = cast(dialect);
      EXPECT_EQ(result.num_shards_written, 3);
      const ModelTensors tensors(output_);
      EXPECT_TRUE(tensors.notes().empty());
      EXPECT_EQ(tensors.dialect(), dialect);
      EXPECT_EQ(tensors.sources().size(), expected.size());
      EXPECT_EQ(read_json_file(output_ + "/config.json").contains("layer_types"),
                dialect == NameDialect::kTransformers);
      EXPECT_EQ(tensors.shards().total_bytes(), result.num_bytes);
      for (const auto& item : expected.items()) {
        const ModelTensors::Source& source = tensors.source(item.key());
        const EncodedTensor& t = *source.tensor;
        EXPECT_EQ(t.encoding, Encoding::kPlain);
        std::string bytes(static_cast<size_t>(source.num_rows * t.num_cols() * dtype_size(t.dtype)),
                          '\0');
        decode_rows(ctx_, t, source.first_row, source.first_row + source.num_rows, bytes.data());
        EXPECT_EQ(sha256_hex(bytes), item.value()["sha256"]) << name << " " << item.key();
      }
    }
  }
}

TEST_F(CastTest, FilesBesideTheWeights) {
  copy_golden("small_official");
  write_file_atomic(input_ + "/tokenizer.json", "{}");
  write_file_atomic(input_ + "/tokenizer_config.json", "{\"a\":1}");
  write_file_atomic(input_ + "/generation_config.json", "{\"eos_token_id\":[1,2]}");
  write_file_atomic(input_ + "/notes.txt", "not part of the model");
  cast();
  EXPECT_EQ(read_file(output_ + "/tokenizer_config.json"), "{\"a\":1}");
  EXPECT_TRUE(file_exists(output_ + "/tokenizer.json"));
  EXPECT_FALSE(file_exists(output_ + "/notes.txt"));
  for (int i = 1; i <= 3; ++i) {
    EXPECT_TRUE(file_exists(output_ + "/model-0000" + std::to_string(i) + "-of-00003.safetensors"));
  }
  const Json config = read_json_file(output_ + "/config.json");
  EXPECT_FALSE(config.contains("quantization_config"));
  EXPECT_FALSE(config.contains("expert_dtype"));
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  EXPECT_EQ(config["compress_ratios"], read_json_file(input_ + "/config.json")["compress_ratios"]);
  EXPECT_EQ(load_model_config(output_).eos_token_ids, (std::vector<int64_t>{1, 2}));
  const Json index = read_json_file(output_ + "/" + kIndexName);
  EXPECT_TRUE(index["weight_map"].contains("model.layers.0.mlp.experts.0.gate_proj.weight"));
  EXPECT_TRUE(index["weight_map"].contains("model.layers.4.e_proj.weight"));
}

TEST_F(CastTest, SingleFileAndUnquantisedInputs) {
  input_ = kGolden + "small/model";
  EXPECT_EQ(cast().num_shards_written, 1);
  EXPECT_EQ(read_json_file(output_ + "/config.json")["torch_dtype"], "float32");
  const Weights before = load_weights(ctx_, input_), after = load_weights(ctx_, output_);
  std::vector<const Parameter*> others;
  for_each_parameter(after, [&](const Parameter& p) { others.push_back(&p); });
  size_t i = 0;
  for_each_parameter(before, [&](const Parameter& p) {
    EXPECT_EQ(0, std::memcmp(p.master.bytes(), others[i++]->master.bytes(),
                             static_cast<size_t>(p.master.num_bytes())))
        << p.name;
  });
}

TEST_F(CastTest, AnInterruptedCastRedoesOnlyWhatIsMissing) {
  copy_golden("small_official");
  cast();
  std::map<std::string, std::string> hashes;
  for (const std::string& name : list_directory(output_)) {
    hashes[name] = hash_of(join_path(output_, name));
  }
  // As a kill during the second shard leaves it: no index, a part under a temporary name.
  const std::string second = output_ + "/model-00002-of-00003.safetensors";
  fs::remove(output_ + "/" + kIndexName);
  fs::rename(second, second + ".4711.tmp");
  const auto first_time = fs::last_write_time(output_ + "/model-00001-of-00003.safetensors");
  PrepareSingleResult result = cast();
  EXPECT_EQ(result.num_shards_written, 1);
  EXPECT_EQ(result.num_shards_kept, 2);
  EXPECT_EQ(fs::last_write_time(output_ + "/model-00001-of-00003.safetensors"), first_time);
  // A damaged shard does not count as finished.
  fs::remove(output_ + "/" + kIndexName);
  fs::resize_file(second, fs::file_size(second) - 1);
  EXPECT_EQ(cast().num_shards_written, 1);
  // A complete cast is left alone.
  result = cast();
  EXPECT_EQ(result.num_shards_written, 0);
  EXPECT_EQ(result.num_shards_kept, 3);
  std::map<std::string, std::string> again;
  for (const std::string& name : list_directory(output_)) {
    again[name] = hash_of(join_path(output_, name));
  }
  EXPECT_EQ(again, hashes);
}

// kill -9 at any moment: either no index, or one whose shards are all there and right.
TEST_F(CastTest, KilledAtAnyMomentAndRunAgainGivesTheSameFiles) {
  copy_golden("small_base");
  const std::string reference = root_ + "/reference";
  prepare_single(ctx_, {.input = input_, .output = reference});
  for (int delay_us : {0, 300, 1000, 2000, 4000, 8000, 16000}) {
    fs::remove_all(output_);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ThreadPool one(1);  // the parent's threads do not exist here
      prepare_single({&one, CpuIsa::kAvx2}, {.input = input_, .output = output_});
      ::_exit(0);
    }
    ::usleep(static_cast<useconds_t>(delay_us));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    if (directory_exists(output_) && file_exists(output_ + "/" + kIndexName)) {
      EXPECT_NO_THROW(load_weights(ctx_, output_));
    }
    cast();
    for (const std::string& name : list_directory(reference)) {
      EXPECT_EQ(hash_of(join_path(output_, name)), hash_of(join_path(reference, name)))
          << name << " after " << delay_us << " us";
    }
    EXPECT_EQ(list_directory(output_), list_directory(reference));
  }
}

TEST_F(CastTest, AnotherInputIsCastAgain) {
  copy_golden("small_official");
  cast();
  cast(NameDialect::kOfficial);
  EXPECT_EQ(ModelTensors(output_).dialect(), NameDialect::kOfficial);
  fs::remove_all(input_);
  copy_golden("small_sgl");
  EXPECT_EQ(cast().num_shards_written, 3);
  EXPECT_EQ(ModelTensors(output_).config().num_nextn_predict_layers, 0);
}

TEST_F(CastTest, ForeignAndBusyOutputsAreRefused) {
  copy_golden("small_official");
  fs::copy(kGolden + "small_sgl/model", output_);
  EXPECT_NE(problem_of_cast().find("holds weights that are no cast of ours"), std::string::npos);
  EXPECT_EQ(hash_of(output_ + "/" + kIndexName),
            hash_of(kGolden + "small_sgl/model/" + kIndexName));
  fs::remove_all(output_);
  make_directories(output_);
  {
    const auto lock = FileLock::try_acquire(output_ + "/.prepare_single.lock");
    EXPECT_NE(problem_of_cast().find("another process is writing"), std::string::npos);
  }
  EXPECT_EQ(problem_of_cast(), "accepted");
  output_ = input_;
  EXPECT_NE(problem_of_cast().find("is the input directory"), std::string::npos);
}

TEST_F(CastTest, MissingScaleIsAnErrorAndNothingIsWritten) {
  copy_golden("small_official");
  std::map<std::string, Tensor> tensors;
  {
    const TensorShards shards(input_);
    for (const auto& [name, stored] : shards.tensors()) tensors[name] = stored.file->read(name);
  }
  tensors.erase("mtp.0.e_proj.scale");
  for (const std::string& name : list_directory(input_)) {
    if (name != "config.json") fs::remove(join_path(input_, name));
  }
  write_safetensors(input_ + "/model.safetensors", {tensors.begin(), tensors.end()});
  const std::string text = problem_of_cast();
  EXPECT_NE(text.find("mtp.0.e_proj.weight"), std::string::npos) << text;
  EXPECT_NE(text.find("missing"), std::string::npos) << text;
  EXPECT_FALSE(directory_exists(output_));
}

// A limit on the size of files stands in for a disk that fills up in the middle of a shard.
TEST_F(CastTest, ADiskThatFillsUpLeavesNoHalfFile) {
  copy_golden("small_official");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);  // the write fails instead
    const rlimit limit{200'000, 200'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ThreadPool one(1);
    try {
      prepare_single({&one, CpuIsa::kAvx2}, {.input = input_, .output = output_});
    } catch (const UserError& e) {
      const bool told = std::string(e.what()).find("model-00001-of-00003") != std::string::npos;
      ::_exit(told ? 1 : 2);
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
  for (const std::string& name : list_directory(output_)) {
    EXPECT_EQ(name.find("safetensors"), std::string::npos) << name;
  }
  EXPECT_EQ(cast().num_shards_written, 3);
}

TEST(HubFilesTest, DecodedConfigOfEachDialect) {
  const Json hub = decoded_config(
      Json::parse(R"({"model_type":"deepseek_ref","torch_dtype":"float8","expert_dtype":"fp4",
                      "quantization_config":{}})"),
      true);
  EXPECT_EQ(hub.dump(), R"({"model_type":"deepseek_v4","torch_dtype":"bfloat16"})");
  const Json original = decoded_config(
      Json::parse(R"({"n_layers":4,"dtype":"fp8","scale_fmt":"ue8m0","expert_dtype":"fp4"})"),
      true);
  EXPECT_EQ(original.dump(), R"({"n_layers":4,"dtype":"bf16"})");
  EXPECT_EQ(decoded_config(Json::parse(R"({"torch_dtype":"float32"})"), false).dump(),
            R"({"torch_dtype":"float32"})");
}

}  // namespace
}  // namespace fathom
