// model.safetensors.index.json beside one real shard: no name leads out of the directory.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fathom/checkpoint/shards.h"
#include "fuzz.h"

namespace {

// A directory of this process, on a memory file system where there is one. Left behind: the
// operating system clears both places.
std::string make_directory() {
  namespace fs = std::filesystem;
  const fs::path base = fs::is_directory("/dev/shm") ? "/dev/shm" : fs::temp_directory_path();
  const std::string path = (base / ("fathom_index_fuzz_" + std::to_string(getpid()))).string();
  fs::create_directories(path);
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  std::ofstream shard(path + "/m.safetensors", std::ios::binary);
  const uint64_t length = header.size();
  shard.write(reinterpret_cast<const char*>(&length), 8);
  shard << header << 'x';
  std::atexit([] {
    std::error_code ignored;
    const fs::path root = fs::is_directory("/dev/shm") ? "/dev/shm" : fs::temp_directory_path();
    fs::remove_all(root / ("fathom_index_fuzz_" + std::to_string(getpid())), ignored);
  });
  return path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  static const std::string directory = make_directory();
  {
    std::ofstream index(directory + "/" + kIndexName, std::ios::binary | std::ios::trunc);
    index.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  }
  fuzz::refuse_or_accept([&] {
    const TensorShards shards(directory);
    for (const auto& [name, tensor] : shards.tensors()) {
      fuzz::require(tensor.file->path() == directory + "/m.safetensors" && name == "a");
    }
  });
  return 0;
}
