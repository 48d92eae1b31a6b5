#include "fathom/kernels/router/router.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/kernels/router/router_cpu.h"
#include "fathom/kernels/router/router_cuda.h"

namespace fathom {
namespace {

constexpr int64_t kTokenGrain = 32;

void check_indices(const char* source, const int32_t* idx, int64_t t, int64_t K, int64_t E) {
  for (int64_t j = 0; j < K; ++j) {
    FATHOM_CHECK(idx[j] >= 0 && idx[j] < E, "router: ", source, " names expert ", idx[j],
                 ", the layer has experts 0 to ", E - 1, "\n  at: token ", t, ", slot ", j);
  }
}

[[noreturn]] void throw_bad_scores(const RouterFwd& p, int64_t t) {
  for (int64_t e = 0; e < p.E; ++e) {
    const float z = p.logits[t * p.E + e];
    const float bias = p.bias == nullptr ? 0.0f : p.bias[e];
    FATHOM_CHECK(!std::isnan(z) && z < HUGE_VALF && !std::isnan(z + bias),
                 "router: the score of an expert is not a finite number: logit ", z, ", bias ",
                 bias, "\n  at: token ", t, ", expert ", e,
                 "\n  fix: look for the first layer whose output is not finite; a checkpoint with "
                 "NaN weights or a diverged training run gives this");
  }
  throw UserError(str_cat("router: the scores of token ", t, " do not add up to a finite number"));
}

}  // namespace

void router_fwd(const ExecContext& ctx, const RouterFwd& p) {
  FATHOM_CHECK(p.K >= 1 && p.K <= p.E, "router: experts per token (", p.K,
               ") must be 1 to the number of experts (", p.E,
               ")\n  fix: check num_experts_per_tok and n_routed_experts in config.json");
  FATHOM_ASSERT(p.tid2eid == nullptr || p.token_ids != nullptr || p.replay_idx != nullptr ||
                p.T == 0);
  FATHOM_DEVICE_DISPATCH(ctx, router_fwd, p);
  ctx.threads->parallel_for(p.T, kTokenGrain, [&](int64_t begin, int64_t end) {
    if (p.replay_idx != nullptr) {
      for (int64_t t = begin; t < end; ++t) {
        check_indices("the routing replay", p.replay_idx + t * p.K, t, p.K, p.E);
      }
    } else if (p.tid2eid != nullptr) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t token = p.token_ids[t];
        FATHOM_CHECK(token >= 0, "router: token id ", token, " at position ", t, " is negative");
        check_indices("the hash table (tid2eid)", p.tid2eid + token * p.K, t, p.K, p.E);
      }
    }
    std::vector<float> scores(static_cast<size_t>(p.E));
    const int64_t bad = FATHOM_CPU_DISPATCH(ctx, router_fwd_tokens, p, begin, end, scores.data());
    if (bad >= 0) throw_bad_scores(p, bad);
  });
}

void router_bwd(const ExecContext& ctx, const RouterBwd& p) {
  FATHOM_DEVICE_DISPATCH(ctx, router_bwd, p);
  ctx.threads->parallel_for(p.T, kTokenGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      check_indices("the forward pass", p.topk_idx + t * p.K, t, p.K, p.E);
    }
    FATHOM_CPU_DISPATCH(ctx, router_bwd_tokens, p, begin, end);
  });
}

void sort_by_expert(const ExecContext& ctx, int64_t num_slots, int64_t E, const int32_t* topk_idx,
                    int32_t* slot_row, int64_t* row_begin) {
  FATHOM_DEVICE_DISPATCH(ctx, sort_by_expert, num_slots, E, topk_idx, slot_row, row_begin);
  std::fill_n(row_begin, E + 1, 0);
  for (int64_t i = 0; i < num_slots; ++i) ++row_begin[topk_idx[i] + 1];
  for (int64_t e = 0; e < E; ++e) row_begin[e + 1] += row_begin[e];
  std::vector<int64_t> next(row_begin, row_begin + E);
  for (int64_t i = 0; i < num_slots; ++i) {
    slot_row[i] = static_cast<int32_t>(next[static_cast<size_t>(topk_idx[i])]++);
  }
}

}  // namespace fathom
