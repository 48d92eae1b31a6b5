// Loading for training beside reading the same files: load_bench TORCH_DIST MODEL THREADS
// [REPETITIONS]. TORCH_DIST holds the weights that were converted from MODEL. Files are out of the
// page cache before each measurement, as far as the system allows it; both are measured turn by
// turn, and medians are told.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "fathom/base/file.h"
#include "fathom/base/process_memory.h"
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
void compare(const char* what, const std::string& directory, int repetitions, Load&& load) {
  const std::vector<std::string> files = weight_files(directory);
  int64_t num_bytes = 0;
  std::vector<double> reads, loads;
  for (int i = 0; i < repetitions; ++i) {
    forget(files);
    reads.push_back(read_plainly(files, &num_bytes));
    forget(files);
    const double begin = now_seconds();
    load();
    loads.push_back(now_seconds() - begin);
  }
  std::sort(reads.begin(), reads.end());
  std::sort(loads.begin(), loads.end());
  const double plain = reads[reads.size() / 2], seconds = loads[loads.size() / 2];
  const double gb = static_cast<double>(num_bytes) / 1e9;
  std::fflush(stdout);
  std::printf("load %s: %.4f GB in %.4f s, %.2f GB/s; plain read %.2f GB/s; %.0f %%\n", what, gb,
              seconds, gb / seconds, gb / plain, 100 * plain / seconds);
}

int run(const std::string& torch_dist, const std::string& model, int num_threads, int repetitions) {
  keep_freed_memory();  // as the program does
  ThreadPool threads(num_threads);
  const ExecContext ctx{&threads, detect_cpu_isa()};
  {
    Weights weights = make_weights(ModelTensors(model).config());
    // Memory is made before the clock starts, as a trainer's is.
    for_each_parameter(weights, [](Parameter& p) { p.alloc(); });
    compare("torch_dist", torch_dist, repetitions,
            [&] { load_torch_dist(ctx, torch_dist, &weights); });
  }
  compare("safetensors", model, repetitions, [&] { load_weights(ctx, model); });
  return 0;
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "usage: load_bench TORCH_DIST MODEL THREADS [REPETITIONS]\n");
    return 2;
  }
  return fathom::run(argv[1], argv[2], std::atoi(argv[3]), argc > 4 ? std::atoi(argv[4]) : 1);
}
