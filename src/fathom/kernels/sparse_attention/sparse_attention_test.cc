#include "fathom/kernels/sparse_attention/sparse_attention.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "fathom/kernels/kernel_test.h"
#include "fathom/kernels/quant/entry_codec.h"
#include "fathom/kernels/sparse_attention/sparse_attention_ref.h"
#include "fathom/numerics/scalar_math.h"

namespace fathom {
namespace {

constexpr double kEps = 0x1p-24;

struct Case {
  int64_t H, hd, window, ratio;   // ratio 0: no compressed entries
  int64_t topk;                   // 0: every visible entry, else at most that many of them
  std::vector<int64_t> segments;  // tokens of each
  float spread = 1;               // size of the queries, so of the logits
};

/// A batch of segments that start at position 0, with entries on pages of three.
struct Problem {
  explicit Problem(const Case& c, uint32_t seed = 1) : H(c.H), hd(c.hd) {
    int64_t num_entries = 0;
    entry_begin.push_back(0);
    for (size_t s = 0; s < c.segments.size(); ++s) {
      const int64_t segment_entries = c.ratio > 0 ? c.segments[s] / c.ratio : 0;
      for (int64_t t = 0; t < c.segments[s]; ++t) {
        const int64_t count = std::min(t + 1, c.window);
        window_begin.push_back(T + t - count + 1);
        window_count.push_back(static_cast<int32_t>(count));
        segment_of.push_back(static_cast<int32_t>(s));
        const int64_t visible = c.ratio > 0 ? (t + 1) / c.ratio : 0;
        std::vector<int64_t> entries_seen;
        const bool all = c.topk == 0 || visible <= c.topk;
        for (int64_t j = 0; j < (all ? visible : c.topk); ++j) {
          entries_seen.push_back(all ? j : (j * visible + t % visible) / c.topk);
        }
        num_picks.push_back(static_cast<int32_t>(entries_seen.size()));
        if (c.topk > 0) {
          for (int64_t j = 0; j < c.topk; ++j) {
            const size_t i = static_cast<size_t>(j);
            const bool used = i < entries_seen.size();
            picks.push_back(used ? static_cast<int32_t>(entries_seen[i]) : -1);
          }
        }
        std::vector<int64_t> keys;
        for (int64_t j = 0; j < count; ++j) keys.push_back(window_begin.back() + j);
        for (const int64_t e : entries_seen) keys.push_back(-1 - (num_entries + e));
        seen.push_back(keys);
      }
      T += c.segments[s];
      num_entries += segment_entries;
      entry_begin.push_back(num_entries);
    }
    for (auto& keys : seen) {
      for (int64_t& key : keys) key = key < 0 ? T - 1 - key : key;
    }
    topk = c.topk;
    scale = 1 / std::sqrt(static_cast<float>(hd));
    q = random_floats(T * H * hd, -c.spread, c.spread, seed);
    window = random_floats(T * hd, -1, 1, seed + 1);
    entries = random_floats(num_entries * hd, -1, 1, seed + 2);
    sink = random_floats(H, -1, 2, seed + 3);
    dout = random_floats(T * H * hd, -1, 1, seed + 4);
    for (size_t s = 0; s + 1 < entry_begin.size(); ++s) {
      page_tables.emplace_back();
      for (int64_t e = entry_begin[s]; e < entry_begin[s + 1]; e += 3) {
        const int64_t last = std::min(e + 3, entry_begin[s + 1]);
        page_memory.emplace_back(entries.begin() + e * hd, entries.begin() + last * hd);
        page_tables.back().push_back(page_memory.back().data());
      }
    }
    for (const auto& table : page_tables) pages.push_back({table.data(), 3, f32_entries(hd)});
  }

  int64_t T = 0, H, hd, topk;
  float scale;
  std::vector<int64_t> window_begin, entry_begin;
  std::vector<int32_t> window_count, segment_of, num_picks, picks;
  std::vector<float> q, window, entries, sink, dout;
  std::vector<std::vector<float>> page_memory;
  std::vector<std::vector<const void*>> page_tables;
  std::vector<KeyPages> pages;
  std::vector<std::vector<int64_t>> seen;  // keys of the reference: window rows, then entries

  static int64_t largest(const std::vector<int32_t>& counts) {
    return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
  }

  SparseAttentionFwd params(std::vector<float>* o, std::vector<float>* lse) const {
    return {.q = q.data(),
            .window_kv = window.data(),
            .window_begin = window_begin.data(),
            .window_count = window_count.data(),
            .segment_pages = pages.data(),
            .segment_of = segment_of.data(),
            .picks = topk > 0 ? picks.data() : nullptr,
            .picks_stride = topk,
            .num_picks = num_picks.data(),
            .sink = sink.data(),
            .scale = scale,
            .T = T,
            .H = H,
            .hd = hd,
            .max_window = largest(window_count),
            .max_picks = largest(num_picks),
            .o = o->data(),
            .lse = lse != nullptr ? lse->data() : nullptr};
  }

  SparseAttentionRef reference() const {
    std::vector<double> keys = to_double(window);
    keys.insert(keys.end(), entries.begin(), entries.end());
    return {H, hd, scale, to_double(q), keys, to_double(sink), seen};
  }

  int64_t max_keys() const {
    size_t most = 0;
    for (const auto& keys : seen) most = std::max(most, keys.size());
    return static_cast<int64_t>(most);
  }
};

struct Result {
  std::vector<float> o, lse, dq, dwindow, dentries, dsink;
};

Result run(const ExecContext& ctx, const Problem& p) {
  Result r{std::vector<float>(p.q.size()),       std::vector<float>(static_cast<size_t>(p.T * p.H)),
           std::vector<float>(p.q.size()),       std::vector<float>(p.window.size()),
           std::vector<float>(p.entries.size()), std::vector<float>(p.sink.size())};
  const SparseAttentionFwd fwd = p.params(&r.o, &r.lse);
  sparse_attention_fwd(ctx, fwd);
  sparse_attention_bwd(ctx, {.fwd = fwd,
                             .do_ = p.dout.data(),
                             .num_window_rows = p.T,
                             .entry_begin = p.entry_begin.data(),
                             .num_segments = static_cast<int64_t>(p.pages.size()),
                             .num_entries = p.entry_begin.back(),
                             .dq = r.dq.data(),
                             .dwindow_kv = r.dwindow.data(),
                             .dcompressed = p.entries.empty() ? nullptr : r.dentries.data(),
                             .dsink = r.dsink.data()});
  return r;
}

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {.H = 8, .hd = 64, .window = 16, .ratio = 4, .topk = 4, .segments = {50, 1, 37, 3}},
      {.H = 3, .hd = 24, .window = 5, .ratio = 4, .topk = 3, .segments = {29, 40}},
      {.H = 2, .hd = 7, .window = 1, .ratio = 0, .topk = 0, .segments = {20}},
      {.H = 1, .hd = 100, .window = 128, .ratio = 16, .topk = 0, .segments = {150, 20}},
      {.H = 20, .hd = 16, .window = 4, .ratio = 2, .topk = 1000, .segments = {33}, .spread = 12},
      // More pairs than one block of the backward holds.
      {.H = 64, .hd = 4, .window = 64, .ratio = 0, .topk = 0, .segments = {600}},
      // More than two chunks of compressed keys at the end.
      {.H = 2, .hd = 32, .window = 3, .ratio = 1, .topk = 0, .segments = {1100}, .spread = 4},
  };
  return list;
}

TEST(SparseAttentionTest, ReferenceGradientMatchesCentralDifferences) {
  const Problem p({.H = 2, .hd = 3, .window = 3, .ratio = 2, .topk = 2, .segments = {6, 3}});
  SparseAttentionRef ref = p.reference();
  const auto dout = to_double(p.dout);
  const auto loss = [&] {
    const auto o = sparse_attention_ref(ref).o;
    double sum = 0;
    for (size_t i = 0; i < o.size(); ++i) sum += o[i] * dout[i];
    return sum;
  };
  const auto grads = sparse_attention_bwd_ref(ref, dout);
  expect_close(grads.dq, central_differences(ref.q, 1e-5, loss), 1e-8, 1e-8, "dq");
  expect_close(grads.dkeys, central_differences(ref.keys, 1e-5, loss), 1e-8, 1e-8, "dkeys");
  expect_close(grads.dsink, central_differences(ref.sink, 1e-5, loss), 1e-8, 1e-8, "dsink");
}

/// Worst-case rounding errors of the kernel, from the sums of magnitudes that the errors scale
/// with.
struct Bounds {
  double o, lse, dq;
  std::vector<double> dkey;   // of each key
  std::vector<double> dsink;  // of each head
};

Bounds error_bounds(const Problem& p, const SparseAttentionRef& ref,
                    const SparseAttentionOutRef& out) {
  const double dot_steps = static_cast<double>(p.hd) / 16 + 6;  // fmas of a lane, tree, scale
  double logit_size = 0, grad_size = 0;  // largest sums |q key| scale and |dout key|
  const auto each_use = [&](auto&& visit) {
    for (size_t t = 0; t < p.seen.size(); ++t) {
      for (int64_t h = 0; h < p.H; ++h) {
        const size_t item = t * static_cast<size_t>(p.H) + static_cast<size_t>(h);
        for (const int64_t key : p.seen[t]) visit(item, static_cast<size_t>(key));
      }
    }
  };
  const size_t hd = static_cast<size_t>(p.hd);
  each_use([&](size_t item, size_t key) {
    double logit = 0, grad = 0;
    for (size_t d = 0; d < hd; ++d) {
      logit += std::abs(ref.q[item * hd + d] * ref.keys[key * hd + d]) * ref.scale;
      grad += std::abs(static_cast<double>(p.dout[item * hd + d]) * ref.keys[key * hd + d]);
    }
    logit_size = std::max(logit_size, logit);
    grad_size = std::max(grad_size, grad);
  });
  // Relative error of a probability: its logit's and lse's, 2 ulp of exp for each, the sum of the
  // keys of a chunk in 16 lanes and the merges. |o| <= 1 and the chain over a chunk's keys add up.
  const double keys = static_cast<double>(std::min<int64_t>(p.max_keys(), kAttentionChunkKeys));
  const double prob = (2 * logit_size * dot_steps + keys / 16 + 24) * kEps;
  Bounds b;
  b.o = prob + keys * kEps;
  b.lse = prob;
  // |dS| <= P (|dP| + |delta|) scale, both below grad_size, and the P of a query sum to at most 1.
  const double ds = 2 * grad_size * ref.scale * (prob + b.o + 2 * dot_steps * kEps);
  b.dq = ds + static_cast<double>(p.max_keys()) * kEps * 2 * grad_size * ref.scale;
  // A key gathers from every (query, head) that sees it, in proportion to P; the chain has two
  // roundings for each.
  double q_size = 0;
  for (const double v : ref.q) q_size = std::max(q_size, std::abs(v));
  std::vector<double> weight(ref.keys.size() / hd), uses(weight.size());
  each_use([&](size_t item, size_t key) {
    double s = 0;
    for (size_t d = 0; d < hd; ++d) s += ref.q[item * hd + d] * ref.keys[key * hd + d];
    weight[key] += std::exp(s * ref.scale - out.lse[item]);
    uses[key] += 1;
  });
  for (size_t key = 0; key < weight.size(); ++key) {
    const double term = ds * q_size + prob;
    const double size = 2 * grad_size * ref.scale * q_size + 1;
    for (size_t d = 0; d < hd; ++d) {
      b.dkey.push_back(weight[key] * (term + 2 * uses[key] * kEps * size) + 1e-30);
    }
  }
  b.dsink.assign(static_cast<size_t>(p.H), 1e-30);
  for (size_t item = 0; item < out.lse.size(); ++item) {
    const size_t h = item % static_cast<size_t>(p.H);
    const double share = std::exp(ref.sink[h] - out.lse[item]);
    b.dsink[h] += share * grad_size * (2 * prob + b.o + static_cast<double>(p.T) * kEps);
  }
  return b;
}

/// Every element within its own bound.
void expect_within(const std::vector<float>& actual, const std::vector<double>& expected,
                   const std::vector<double>& bound, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_LE(std::abs(actual[i] - expected[i]), bound[i])
        << what << ": element " << i << " is " << actual[i] << ", expected " << expected[i];
  }
}

TEST(SparseAttentionTest, ForwardAndBackwardMatchFp64WithSameBitsEverywhere) {
  for (const Case& c : cases()) {
    const Problem p(c);
    const SparseAttentionRef ref = p.reference();
    const auto out_ref = sparse_attention_ref(ref);
    const auto grads_ref = sparse_attention_bwd_ref(ref, to_double(p.dout));
    const Bounds bound = error_bounds(p, ref, out_ref);
    std::unique_ptr<Result> first;
    for_each_context([&](const ExecContext& ctx, const std::string& context) {
      const std::string name = context + ", hd " + std::to_string(c.hd);
      const Result r = run(ctx, p);
      expect_close(r.o, out_ref.o, bound.o, 0, name + " o");
      expect_close(r.lse, out_ref.lse, bound.lse, kEps, name + " lse");
      expect_close(r.dq, grads_ref.dq, bound.dq, 0, name + " dq");
      std::vector<float> dkeys = r.dwindow;
      dkeys.insert(dkeys.end(), r.dentries.begin(), r.dentries.end());
      expect_within(dkeys, grads_ref.dkeys, bound.dkey, name + " dkeys");
      expect_within(r.dsink, grads_ref.dsink, bound.dsink, name + " dsink");
      if (!first) first = std::make_unique<Result>(r);
      expect_same_bits(r.o, first->o, name + " o");
      expect_same_bits(r.lse, first->lse, name + " lse");
      expect_same_bits(r.dq, first->dq, name + " dq");
      expect_same_bits(r.dwindow, first->dwindow, name + " dwindow");
      expect_same_bits(r.dentries, first->dentries, name + " dentries");
      expect_same_bits(r.dsink, first->dsink, name + " dsink");
    });
  }
}

TEST(SparseAttentionTest, AQueryAloneAndAnySplitOfQueriesGiveTheBitsOfTheBatch) {
  for (const Case& c : cases()) {
    const Problem p(c);
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      const Result whole = run(ctx, p);
      // Single queries of the long cases would take seconds.
      for (const int64_t step : {p.T > 300 ? p.T / 20 : int64_t{1}, p.T / 3 + 1}) {
        Result r{std::vector<float>(p.q.size()),       whole.lse,
                 std::vector<float>(p.q.size()),       std::vector<float>(p.window.size()),
                 std::vector<float>(p.entries.size()), std::vector<float>(p.sink.size())};
        for (int64_t t = 0; t < p.T; t += step) {
          SparseAttentionFwd part = p.params(&r.o, &r.lse);
          part.q += t * p.H * p.hd, part.o += t * p.H * p.hd, part.lse += t * p.H;
          part.window_begin += t, part.window_count += t, part.segment_of += t;
          part.num_picks += t, part.T = std::min(step, p.T - t);
          if (part.picks != nullptr) part.picks += t * p.topk;
          sparse_attention_fwd(ctx, part);
          // Key gradients and dsink continue, so queries in order give the chain of the batch.
          sparse_attention_bwd(ctx, {.fwd = part,
                                     .do_ = p.dout.data() + t * p.H * p.hd,
                                     .num_window_rows = p.T,
                                     .entry_begin = p.entry_begin.data(),
                                     .num_segments = static_cast<int64_t>(p.pages.size()),
                                     .num_entries = p.entry_begin.back(),
                                     .dq = r.dq.data() + t * p.H * p.hd,
                                     .dwindow_kv = r.dwindow.data(),
                                     .dcompressed = r.dentries.data(),
                                     .dsink = r.dsink.data()});
        }
        expect_same_bits(r.o, whole.o, name + " o");
        expect_same_bits(r.lse, whole.lse, name + " lse");
        expect_same_bits(r.dq, whole.dq, name + " dq");
        expect_same_bits(r.dwindow, whole.dwindow, name + " dwindow");
        expect_same_bits(r.dentries, whole.dentries, name + " dentries");
        expect_same_bits(r.dsink, whole.dsink, name + " dsink");
      }
      // The last query alone: the one that sees most.
      const int64_t last = p.T - 1, row = p.H * p.hd;
      std::vector<float> o(static_cast<size_t>(row));
      SparseAttentionFwd one = p.params(&o, nullptr);
      one.q += last * row, one.window_begin += last, one.window_count += last;
      one.segment_of += last, one.num_picks += last, one.T = 1;
      if (one.picks != nullptr) one.picks += last * p.topk;
      sparse_attention_fwd(ctx, one);
      expect_same_bits(o, std::vector<float>(whole.o.end() - row, whole.o.end()), name + " last");
    });
  }
}

/// row_ops.h dot() and row_sum() one operation at a time (y null: the sum).
float in_row_order(const float* x, const float* y, int64_t n) {
  float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) {
    float& lane = lanes[i % 16];
    lane = y != nullptr ? std::fma(x[i], y[i], lane) : lane + x[i];
  }
  for (int step = 8; step >= 1; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0];
}

TEST(SparseAttentionTest, EveryBitFollowsTheDocumentedOrder) {
  const Problem p({.H = 2, .hd = 20, .window = 5, .ratio = 2, .topk = 3, .segments = {23}});
  const size_t hd = 20, T = 23, H = 2;
  std::vector<float> keys = p.window;
  keys.insert(keys.end(), p.entries.begin(), p.entries.end());
  Result want{{}, {}, {}, {}, {}, std::vector<float>(H)};
  std::vector<float> dkeys(keys.size());
  for (size_t t = 0; t < T; ++t) {
    for (size_t h = 0; h < H; ++h) {
      const float* q = &p.q[(t * H + h) * hd];
      const float* dout = &p.dout[(t * H + h) * hd];
      const std::vector<int64_t>& seen = p.seen[t];
      std::vector<float> s, a(hd);
      for (const int64_t key : seen) {
        s.push_back(in_row_order(q, &keys[static_cast<size_t>(key) * hd], 20) * p.scale);
      }
      // Chunk 0 is the window, chunk 1 the compressed entries.
      float m = 0, l = 0;
      const size_t window = static_cast<size_t>(p.window_count[t]);
      for (const auto& [begin, end] : {std::pair{size_t{0}, window}, std::pair{window, s.size()}}) {
        if (begin == end) continue;
        const float m_c = *std::max_element(&s[begin], s.data() + end);
        std::vector<float> prob, a_c(hd);
        for (size_t k = begin; k < end; ++k) {
          prob.push_back(scalar_exp(s[k] - m_c));
          for (size_t d = 0; d < hd; ++d) {
            a_c[d] = std::fma(prob.back(), keys[static_cast<size_t>(seen[k]) * hd + d], a_c[d]);
          }
        }
        const float l_c = in_row_order(prob.data(), nullptr, static_cast<int64_t>(prob.size()));
        if (begin == 0) {
          m = m_c, l = l_c, a = a_c;
          continue;
        }
        const float merged = std::max(m, m_c);
        const float r = scalar_exp(m - merged), r_c = scalar_exp(m_c - merged);
        m = merged, l = std::fma(l, r, l_c * r_c);
        for (size_t d = 0; d < hd; ++d) a[d] = std::fma(a[d], r, a_c[d] * r_c);
      }
      const float top = std::max(m, p.sink[h]), r = scalar_exp(m - top);
      l = std::fma(l, r, scalar_exp(p.sink[h] - top));
      for (size_t d = 0; d < hd; ++d) want.o.push_back(a[d] * r / l);
      want.lse.push_back(top + scalar_log(l));

      const float lse = want.lse.back();
      const float delta = in_row_order(&want.o[want.o.size() - hd], dout, 20);
      std::vector<float> dq(hd);
      for (size_t k = 0; k < seen.size(); ++k) {
        const size_t key = static_cast<size_t>(seen[k]) * hd;
        const float prob = scalar_exp(s[k] - lse);
        const float ds = prob * (in_row_order(dout, &keys[key], 20) - delta) * p.scale;
        for (size_t d = 0; d < hd; ++d) {
          dq[d] = std::fma(ds, keys[key + d], dq[d]);
          dkeys[key + d] = std::fma(prob, dout[d], std::fma(ds, q[d], dkeys[key + d]));
        }
      }
      want.dq.insert(want.dq.end(), dq.begin(), dq.end());
      want.dsink[h] = std::fma(-delta, scalar_exp(p.sink[h] - lse), want.dsink[h]);
    }
  }
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const Result r = run(ctx, p);
    expect_same_bits(r.o, want.o, name + " o");
    expect_same_bits(r.lse, want.lse, name + " lse");
    expect_same_bits(r.dq, want.dq, name + " dq");
    std::vector<float> got = r.dwindow;
    got.insert(got.end(), r.dentries.begin(), r.dentries.end());
    expect_same_bits(got, dkeys, name + " dkeys");
    expect_same_bits(r.dsink, want.dsink, name + " dsink");
  });
}

TEST(SparseAttentionTest, RoundedPIsTheReferenceWithTheSameRounding) {
  for (const Case& c : cases()) {
    const Problem p(c);
    SparseAttentionRef ref = p.reference();
    const SparseAttentionOutRef exact = sparse_attention_ref(ref);
    ref.num_window.assign(p.window_count.begin(), p.window_count.end());
    const std::vector<double> want = sparse_attention_ref(ref).o;
    std::vector<float> first;
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> o(p.q.size()), lse(static_cast<size_t>(p.T * p.H));
      SparseAttentionFwd fwd = p.params(&o, &lse);
      fwd.bf16_p = true;
      sparse_attention_fwd(ctx, fwd);
      // A P on the edge of a rounding may fall to the other side: half a step of 2^-8 of it, of
      // keys below 1. Few do, so on the whole the rounding itself is far larger than the error.
      expect_close(o, want, 0x1p-9, 0, name);
      double error = 0, rounding = 0;
      for (size_t i = 0; i < o.size(); ++i) {
        error += std::pow(static_cast<double>(o[i]) - want[i], 2);
        rounding += std::pow(want[i] - exact.o[i], 2);
      }
      if (p.max_keys() > 1) {  // the only key of a query has P = 1
        EXPECT_LT(error, 0.01 * rounding) << name;
      }
      expect_close(lse, exact.lse, 1e-4, 0, name + " lse");
      if (first.empty()) first = o;
      expect_same_bits(o, first, name);
    });
  }
}

TEST(SparseAttentionTest, StoredEntriesGiveTheBitsOfTheirFloats) {
  for (const Case& c : cases()) {
    if (c.ratio == 0) continue;
    for (const EntryFormat& f : {bf16_entries(c.hd), fp8_entries(c.hd, c.hd - c.hd / 3, 16)}) {
      for_each_context([&](const ExecContext& ctx, const std::string& name) {
        Problem p(c);
        std::vector<std::vector<uint8_t>> stored;
        std::vector<std::vector<const void*>> tables;
        std::vector<KeyPages> stored_pages;
        size_t page = 0;
        for (const auto& table : p.page_tables) {
          tables.emplace_back();
          for (size_t i = 0; i < table.size(); ++i) {
            std::vector<float>& rows = p.page_memory[page++];
            const int64_t count = static_cast<int64_t>(rows.size()) / c.hd;
            stored.emplace_back(static_cast<size_t>(count * f.num_bytes));
            encode_entries(f, rows.data(), count, stored.back().data());
            decode_entries(ctx, f, stored.back().data(), count, rows.data());
            tables.back().push_back(stored.back().data());
          }
        }
        for (const auto& table : tables) stored_pages.push_back({table.data(), 3, f});
        std::vector<float> o(p.q.size()), lse(static_cast<size_t>(p.T * p.H)), want_o = o,
                                                                               want_lse = lse;
        sparse_attention_fwd(ctx, p.params(&want_o, &want_lse));
        SparseAttentionFwd fwd = p.params(&o, &lse);
        fwd.segment_pages = stored_pages.data();
        sparse_attention_fwd(ctx, fwd);
        expect_same_bits(o, want_o, name);
        expect_same_bits(lse, want_lse, name);
      });
    }
  }
}

TEST(SparseAttentionTest, GoldenScalarValues) {
  // Logits 0.3, -0.2, 1.1 for values 1, 2, -1 need a second channel: q . key = q0 v + q1 u with
  // q = (0, 1), so key = (value, logit). The second output channel is not looked at.
  const std::vector<float> q = {0, 1}, keys = {1, 0.3f, 2, -0.2f, -1, 1.1f};
  const float sink = 0.5f;
  const int64_t window_begin = 0, entry_begin[] = {0, 0};
  const int32_t window_count = 3, segment = 0, num_picks = 0;
  const KeyPages pages;
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    std::vector<float> o(2), lse(1), dq(2), dkeys(6), dsink(1);
    const std::vector<float> dout = {1, 0};
    const SparseAttentionFwd fwd{.q = q.data(),
                                 .window_kv = keys.data(),
                                 .window_begin = &window_begin,
                                 .window_count = &window_count,
                                 .segment_pages = &pages,
                                 .segment_of = &segment,
                                 .picks = nullptr,
                                 .picks_stride = 0,
                                 .num_picks = &num_picks,
                                 .sink = &sink,
                                 .scale = 1,
                                 .T = 1,
                                 .H = 1,
                                 .hd = 2,
                                 .max_window = 3,
                                 .max_picks = 0,
                                 .o = o.data(),
                                 .lse = lse.data()};
    sparse_attention_fwd(ctx, fwd);
    sparse_attention_bwd(ctx, {.fwd = fwd,
                               .do_ = dout.data(),
                               .num_window_rows = 3,
                               .entry_begin = entry_begin,
                               .num_segments = 1,
                               .num_entries = 0,
                               .dq = dq.data(),
                               .dwindow_kv = dkeys.data(),
                               .dcompressed = nullptr,
                               .dsink = dsink.data()});
    // Published to seven decimals; fp32 adds a few 2^-24.
    const double tolerance = 5e-8 + 8 * kEps;
    EXPECT_NEAR(o[0], -0.0024695, tolerance);
    EXPECT_NEAR(lse[0], 1.9200760, tolerance);
    EXPECT_NEAR(std::exp(sink - lse[0]), 0.2416956, tolerance);
    // dkey's second channel is dS * q1 = dS.
    EXPECT_NEAR(dkeys[1], 0.1983723, tolerance);
    EXPECT_NEAR(dkeys[3], 0.2403414, tolerance);
    EXPECT_NEAR(dkeys[5], -0.4393106, tolerance);
    EXPECT_NEAR(dsink[0], 0.0005969, tolerance);
  });
}

TEST(SparseAttentionTest, OneKeyWithoutSinkIsThatKey) {
  const Problem base({.H = 2, .hd = 20, .window = 1, .ratio = 0, .topk = 0, .segments = {3}});
  Problem p = base;
  p.sink.assign(2, -std::numeric_limits<float>::infinity());
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const Result r = run(ctx, p);
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t h = 0; h < 2; ++h) {
        const auto o = r.o.begin() + (t * 2 + h) * 20;
        expect_same_bits(
            std::vector<float>(o, o + 20),
            std::vector<float>(p.window.begin() + t * 20, p.window.begin() + t * 20 + 20), name);
      }
    }
    expect_same_bits(r.dsink, std::vector<float>{0, 0}, name + " dsink");
  });
  // A sink far above every logit takes all the weight.
  p.sink.assign(2, 1000.0f);
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const Result r = run(ctx, p);
    for (const float v : r.o) EXPECT_EQ(v, 0.0f) << name;
    for (const float v : r.lse) EXPECT_EQ(v, 1000.0f) << name;
  });
}

TEST(SparseAttentionTest, NoQueriesNoLseAndNaN) {
  Problem p({.H = 2, .hd = 20, .window = 2, .ratio = 2, .topk = 1, .segments = {4}});
  for_each_context([&](const ExecContext& ctx, const std::string& name) {
    const Result r = run(ctx, p);
    std::vector<float> o(r.o.size());
    sparse_attention_fwd(ctx, p.params(&o, nullptr));
    expect_same_bits(o, r.o, name + " without lse");

    SparseAttentionFwd none = p.params(&o, nullptr);
    none.T = 0, none.o = nullptr;
    sparse_attention_fwd(ctx, none);
    std::vector<float> dsink(2, 0.5f);
    sparse_attention_bwd(ctx, {.fwd = none,
                               .do_ = nullptr,
                               .num_window_rows = 0,
                               .entry_begin = nullptr,
                               .num_segments = 0,
                               .num_entries = 0,
                               .dq = nullptr,
                               .dwindow_kv = nullptr,
                               .dcompressed = nullptr,
                               .dsink = dsink.data()});
    expect_same_bits(dsink, {0.5f, 0.5f}, name + " dsink");

    Problem bad = p;
    bad.q[0] = std::nanf("");
    const Result seen = run(ctx, bad);
    EXPECT_TRUE(std::isnan(seen.o[0])) << name;
    EXPECT_FALSE(std::isnan(seen.o[20])) << name << ": the other head";
  });
}

}  // namespace
}  // namespace fathom
