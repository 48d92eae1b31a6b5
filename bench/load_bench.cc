// Loading for training beside reading the same files: load_bench TORCH_DIST MODEL THREADS.
// TORCH_DIST holds the weights that were converted from MODEL. Files are out of the page cache
// before each measurement, as far as the system allows it.
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/base/thread_pool.h"
#include "fathom/checkpoint/dcp_weights.h"
#include "fathom/checkpoint/load.h"

namespace fathom {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<std::string> weight_files(const std::string& directory) {
  std::vector<std::string> files;
  for (const std::string& name : list_directory(directory)) {
    if (name.ends_with(".distcp") || name.ends_with(".safetensors")) {
      files.push_back(join_path(directory, name));
    }
  }
  return files;
}

void forget(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

// Seconds to read the files from front to back.
double read_plainly(const std::vector<std::string>& files, int64_t* num_bytes) {
  std::vector<char> piece(8 << 20);
  const double begin = now_seconds();
  *num_bytes = 0;
  for (const std::string& path : files) {
    const FileReader file(path);
    for (int64_t at = 0; at < file.size();) {
      const int64_t n = std::min<int64_t>(static_cast<int64_t>(piece.size()), file.size() - at);
      file.read(at, n, piece.data());
      at += n;
    }
    *num_bytes += file.size();
  }
  return now_seconds() - begin;
}

template <typename Load>
void compare(const char* what, const std::string& directory, Load&& load) {
  const std::vector<std::string> files = weight_files(directory);
  int64_t num_bytes = 0;
  forget(files);
  const double plain = read_plainly(files, &num_bytes);
  forget(files);
  const double begin = now_seconds();
  load();
  const double seconds = now_seconds() - begin;
  const double gb = static_cast<double>(num_bytes) / 1e9;
  std::printf("load %s: %.2f GB in %.2f s, %.2f GB/s; plain read %.2f GB/s; %.0f %%\n", what, gb,
              seconds, gb / seconds, gb / plain, 100 * plain / seconds);
}

int run(const std::string& torch_dist, const std::string& model, int num_threads) {
  ThreadPool threads(num_threads);
  const ExecContext ctx{&threads, detect_cpu_isa()};
  {
    Weights weights = make_weights(ModelTensors(model).config());
    // Memory is made before the clock starts, as a trainer's is.
    for_each_parameter(weights, [](Parameter& p) { p.alloc(); });
    compare("torch_dist", torch_dist, [&] { load_torch_dist(ctx, torch_dist, &weights); });
  }
  compare("safetensors", model, [&] { load_weights(ctx, model); });
  return 0;
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: load_bench TORCH_DIST MODEL THREADS\n");
    return 2;
  }
  return fathom::run(argv[1], argv[2], std::atoi(argv[3]));
}
