// What the checks and timings of the Hopper kernels share: device buffers, random inputs,
// comparison, timing. Used by kernels_sm90_bench alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace fathom::sm90 {

inline void cuda_check(cudaError_t err, const char* what, const char* file, int line) {
  if (err == cudaSuccess) return;
  std::printf("%s:%d: %s: %s\n", file, line, what, cudaGetErrorString(err));
  std::exit(1);
}
#define FATHOM_CUDA(call) ::fathom::sm90::cuda_check((call), #call, __FILE__, __LINE__)

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n) {
    FATHOM_CUDA(cudaMalloc(&data_, std::max<size_t>(n, 1) * sizeof(T)));
    poison();
  }
  explicit Buffer(const std::vector<T>& host) : Buffer(host.size()) {
    FATHOM_CUDA(cudaMemcpy(data_, host.data(), n_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  T* get() const { return data_; }
  size_t size() const { return n_; }
  /// All bits set: NaN in every floating type.
  void poison() { FATHOM_CUDA(cudaMemset(data_, 0xFF, n_ * sizeof(T))); }
  std::vector<T> host() const {
    std::vector<T> v(n_);
    FATHOM_CUDA(cudaMemcpy(v.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

__host__ __device__ inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
/// About normal: sum of four uniform numbers, mean 0, variance 1.
__host__ __device__ inline float noise(uint64_t seed, uint64_t i) {
  const uint64_t u = mix(seed * 0x2545F4914F6CDD1Dull + i);
  const float sum =
      float(u & 0xFFFF) + float(u >> 16 & 0xFFFF) + float(u >> 32 & 0xFFFF) + float(u >> 48);
  return (sum / 65536.0f - 2.0f) * 1.7320508f;
}
template <class T>
__global__ void fill_noise(T* out, size_t n, uint64_t seed, float scale) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x)
    out[i] = T(noise(seed, i) * scale);
}
template <class T>
void fill(const Buffer<T>& b, uint64_t seed, float scale = 1.0f) {
  fill_noise<T><<<1024, 256>>>(b.get(), b.size(), seed, scale);
  FATHOM_CUDA(cudaGetLastError());
}

inline int failures = 0;
inline void expect(bool ok, const char* what) {
  if (!ok) {
    ++failures;
    std::printf("FAIL %s\n", what);
  }
}

template <class T>
__global__ void error_sums(const T* got, const double* ref, size_t n, double* sums) {
  double diff = 0, norm = 0;
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    const double d = double(float(got[i])) - ref[i];
    diff += d * d;
    norm += ref[i] * ref[i];
  }
  atomicAdd(&sums[0], diff);
  atomicAdd(&sums[1], norm);
}
/// || got - ref || / || ref ||; NaN when an element is NaN.
template <class T>
double relative_error(const T* got, const double* ref, size_t n) {
  Buffer<double> sums(std::vector<double>{0, 0});
  error_sums<T><<<256, 256>>>(got, ref, n, sums.get());
  FATHOM_CUDA(cudaDeviceSynchronize());
  const auto s = sums.host();
  return std::sqrt(s[0] / s[1]);
}
template <class T>
size_t different_bits(const T* a, const T* b, size_t n) {
  std::vector<T> x(n), y(n);
  FATHOM_CUDA(cudaMemcpy(x.data(), a, n * sizeof(T), cudaMemcpyDeviceToHost));
  FATHOM_CUDA(cudaMemcpy(y.data(), b, n * sizeof(T), cudaMemcpyDeviceToHost));
  const auto* p = reinterpret_cast<const uint8_t*>(x.data());
  const auto* q = reinterpret_cast<const uint8_t*>(y.data());
  size_t count = 0;
  for (size_t i = 0; i < n; ++i)
    count += !std::equal(p + i * sizeof(T), p + (i + 1) * sizeof(T), q + i * sizeof(T));
  return count;
}

/// Median milliseconds of one call(stream), by events around replays of a graph of `calls` of them,
/// so that neither launches nor the host's share of a call are in it.
template <class F>
double time_ms(F&& call, int calls = 5, int replays = 7) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t begin, end;
  FATHOM_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  FATHOM_CUDA(cudaEventCreate(&begin));
  FATHOM_CUDA(cudaEventCreate(&end));
  call(stream);
  FATHOM_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) call(stream);
  FATHOM_CUDA(cudaStreamEndCapture(stream, &graph));
  FATHOM_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  FATHOM_CUDA(cudaGraphLaunch(exec, stream));
  std::vector<double> ms;
  for (int r = 0; r < replays; ++r) {
    FATHOM_CUDA(cudaEventRecord(begin, stream));
    FATHOM_CUDA(cudaGraphLaunch(exec, stream));
    FATHOM_CUDA(cudaEventRecord(end, stream));
    FATHOM_CUDA(cudaEventSynchronize(end));
    float t = 0;
    FATHOM_CUDA(cudaEventElapsedTime(&t, begin, end));
    ms.push_back(t / calls);
  }
  std::sort(ms.begin(), ms.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  return ms[ms.size() / 2];
}

}  // namespace fathom::sm90
