// kernels_sm90_bench [check] [time] [all] [gemm] [attention] [indexer]
// Checks and times the Hopper kernels. Without a family: all of them. `all` times every variant and
// not just the one taken. Exit status 1 when a check fails, 77 without a Hopper device.
#include <cstdio>
#include <set>
#include <string>

#include "fathom/kernels/sm90/checks.h"
#include "fathom/kernels/sm90/harness.h"

int main(int argc, char** argv) {
  using namespace fathom::sm90;
  const std::set<std::string> args(argv + 1, argv + argc);
  auto has = [&](const char* a) { return args.count(a) > 0; };
  const bool every = !has("gemm") && !has("attention") && !has("indexer");
  cudaDeviceProp prop{};
  if (cudaGetDeviceProperties(&prop, 0) != cudaSuccess || prop.major != 9) {
    std::printf("no Hopper device\n");
    return 77;
  }
  std::printf("%s, %d multiprocessors\n", prop.name, prop.multiProcessorCount);
  if (has("check")) {
    if (every || has("gemm")) check_gemm();
    if (every || has("attention")) check_attention();
    if (every || has("indexer")) check_indexer();
    std::printf("%d checks failed\n", failures);
  }
  if (has("time")) {
    if (every || has("gemm")) time_gemm(has("all"));
    if (every || has("attention")) time_attention(has("all"));
    if (every || has("indexer")) time_indexer();
  }
  return failures > 0 ? 1 : 0;
}
