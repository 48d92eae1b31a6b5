// One thread per token: scores and the choice are a few hundred steps. One block per expert for the
// order of rows.
#include "fathom/base/cuda_launch.cuh"
#include "fathom/kernels/router/router_cuda.h"
#include "fathom/numerics/cuda_math.cuh"

namespace fathom::cuda {
namespace {

constexpr int kScoreThreads = 256, kTokenThreads = 32, kSortThreads = 256;

__global__ void router_scores_kernel(int64_t n, const float* logits, float* scores) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kScoreThreads) + threadIdx.x;
  if (i < n) scores[i] = sqrtf(softplus_of(logits[i]));
}

/// The K largest of score + bias, larger first, then the lower id. @return the expert of a NaN, or
/// -1
__device__ inline int64_t choose(const float* scores, const float* bias, int64_t E, int64_t K,
                                 int32_t* idx, float* best) {
  int64_t filled = 0;
  for (int64_t e = 0; e < E; ++e) {
    const float value = bias == nullptr ? scores[e] : scores[e] + bias[e];
    if (value != value) return e;
    if (filled == K && !(value > best[K - 1])) continue;
    int64_t at = filled < K ? filled++ : K - 1;
    for (; at > 0 && value > best[at - 1]; --at) {
      best[at] = best[at - 1];
      idx[at] = idx[at - 1];
    }
    best[at] = value;
    idx[at] = static_cast<int32_t>(e);
  }
  return -1;
}

/// On a fault the token gets the first experts with weight 0, so that nothing reads beyond arrays
/// before the host hears of it.
__device__ void give_up(const RouterFwd& p, int64_t t) {
  for (int64_t j = 0; j < p.K; ++j) {
    p.topk_idx[t * p.K + j] = static_cast<int32_t>(j);
    p.topk_weights[t * p.K + j] = 0.0f;
  }
}

__global__ void router_choose_kernel(const RouterFwd p, const float* all_scores,
                                     DeviceFault* fault) {
  const int64_t t = blockIdx.x * static_cast<int64_t>(kTokenThreads) + threadIdx.x;
  if (t >= p.T) return;
  const float* scores = all_scores + t * p.E;
  int32_t* idx = p.topk_idx + t * p.K;
  float* weights = p.topk_weights + t * p.K;
  const int32_t* given = nullptr;
  if (p.replay_idx != nullptr) {
    given = p.replay_idx + t * p.K;
  } else if (p.tid2eid != nullptr) {
    const int64_t token = p.token_ids[t];
    if (token < 0) {
      report_fault(fault, DeviceFaultKind::kRouterToken, t, 0, p.token_ids[t]);
      return give_up(p, t);
    }
    given = p.tid2eid + token * p.K;
  }
  if (given != nullptr) {
    for (int64_t j = 0; j < p.K; ++j) {
      if (given[j] < 0 || given[j] >= p.E) {
        report_fault(fault,
                     p.replay_idx != nullptr ? DeviceFaultKind::kRouterReplay
                                             : DeviceFaultKind::kRouterTable,
                     t, j, given[j]);
        return give_up(p, t);
      }
    }
    // Scores of the experts that are not taken matter to nobody, but a NaN is a fault upstream.
    for (int64_t e = 0; e < p.E; ++e) {
      if (scores[e] != scores[e]) {
        report_fault(fault, DeviceFaultKind::kRouterScore, t, e);
        return give_up(p, t);
      }
    }
    for (int64_t j = 0; j < p.K; ++j) idx[j] = given[j];
  } else {
    const int64_t bad = choose(scores, p.bias, p.E, p.K, idx, weights);
    if (bad >= 0) {
      report_fault(fault, DeviceFaultKind::kRouterScore, t, bad);
      return give_up(p, t);
    }
  }
  float total = 0.0f;
  for (int64_t j = 0; j < p.K; ++j) total += scores[idx[j]];
  total += 1e-20f;
  if (!(total <= 3.402823466e+38f)) {
    report_fault(fault, DeviceFaultKind::kRouterScore, t, idx[0]);
    return give_up(p, t);
  }
  for (int64_t j = 0; j < p.K; ++j) weights[j] = scores[idx[j]] / total * p.scaling;
}

__global__ void router_bwd_kernel(const RouterBwd p) {
  const int64_t t = blockIdx.x * static_cast<int64_t>(kTokenThreads) + threadIdx.x;
  if (t >= p.T) return;
  const float* z = p.logits + t * p.E;
  const int32_t* idx = p.topk_idx + t * p.K;
  const float* dw = p.dtopk_weights + t * p.K;
  float* dz = p.dlogits + t * p.E;
  for (int64_t e = 0; e < p.E; ++e) dz[e] = 0.0f;
  float total = 0.0f, weighted = 0.0f;
  for (int64_t j = 0; j < p.K; ++j) {
    const float s = sqrtf(softplus_of(z[idx[j]]));
    total += s;
    weighted += dw[j] * s;
  }
  const float sum = total + 1e-20f;
  for (int64_t j = 0; j < p.K; ++j) {
    const float zj = z[idx[j]];
    const float s = sqrtf(softplus_of(zj));
    // sigma(z) / (2 s); its limit e^{z/2} / 2 where softplus nears its underflow.
    const float slope = zj < -40.0f ? 0.5f * exp_of(0.5f * zj) : (0.5f * sigmoid_of(zj)) / s;
    const float ds = p.scaling / sum * (dw[j] - weighted / sum);
    dz[idx[j]] += ds * slope;
  }
}

/// Block e: how many slots go to smaller experts, then the rows of its own in order.
__global__ void sort_by_expert_kernel(int64_t n, int64_t E, const int32_t* topk_idx,
                                      int32_t* slot_row, int64_t* row_begin) {
  const int32_t expert = static_cast<int32_t>(blockIdx.x);
  __shared__ int64_t smaller[kSortThreads];
  __shared__ int32_t warp_counts[kSortThreads / 32];
  int64_t count = 0;
  for (int64_t i = threadIdx.x; i < n; i += kSortThreads) count += topk_idx[i] < expert;
  smaller[threadIdx.x] = count;
  __syncthreads();
  for (int step = kSortThreads / 2; step > 0; step /= 2) {
    if (static_cast<int>(threadIdx.x) < step) smaller[threadIdx.x] += smaller[threadIdx.x + step];
    __syncthreads();
  }
  int64_t next = smaller[0];
  if (threadIdx.x == 0) {
    row_begin[expert] = next;
    if (expert == 0) row_begin[E] = n;
  }
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t first = 0; first < n; first += kSortThreads) {
    const int64_t i = first + threadIdx.x;
    const bool mine = i < n && topk_idx[i] == expert;
    const unsigned votes = __ballot_sync(0xFFFFFFFFu, mine);
    if (lane == 0) warp_counts[warp] = __popc(votes);
    __syncthreads();
    int32_t before = __popc(votes & ((1u << lane) - 1u)), all = 0;
    for (unsigned w = 0; w < kSortThreads / 32; ++w) {
      if (w < warp) before += warp_counts[w];
      all += warp_counts[w];
    }
    if (mine) slot_row[i] = static_cast<int32_t>(next + before);
    next += all;
    __syncthreads();
  }
}

}  // namespace

void router_fwd(Device& device, const RouterFwd& p) {
  if (p.T == 0) return;
  const Scratch<float> scores(device, p.T * p.E);
  FATHOM_LAUNCH(device, router_scores_kernel, blocks_for(p.T * p.E, kScoreThreads), kScoreThreads,
                0, p.T * p.E, p.logits, scores.get());
  FATHOM_LAUNCH(device, router_choose_kernel, blocks_for(p.T, kTokenThreads), kTokenThreads, 0, p,
                scores.get(), device.fault());
}

void router_bwd(Device& device, const RouterBwd& p) {
  if (p.T == 0) return;
  FATHOM_LAUNCH(device, router_bwd_kernel, blocks_for(p.T, kTokenThreads), kTokenThreads, 0, p);
}

void sort_by_expert(Device& device, int64_t num_slots, int64_t E, const int32_t* topk_idx,
                    int32_t* slot_row, int64_t* row_begin) {
  FATHOM_LAUNCH(device, sort_by_expert_kernel, static_cast<unsigned>(E), kSortThreads, 0, num_slots,
                E, topk_idx, slot_row, row_begin);
}

}  // namespace fathom::cuda
