#include "fathom/model/expert_exchange.h"

#include <cstring>

#include "fathom/base/error.h"

namespace fathom {

using dist::Incoming;
using dist::Outgoing;

ExpertExchange::ExpertExchange(const Layout& layout, const Tensor& row_begin, bool is_cut)
    : group_(layout.experts), row_begin_(row_begin) {
  if (group_.size() == 1) return;
  FATHOM_ASSERT(row_begin.device() == nullptr, "several ranks compute on CPUs");
  const int ep = layout.ep.size(), etp = layout.etp.size();
  const int64_t num_local = num_experts() / ep;
  const int64_t* begin = row_begin.i64();
  num_own_rows_ = begin[num_experts()];
  if (is_cut) num_parts_ = etp;
  std::vector<int64_t> to_send, offsets;
  for (int member = 0; member < group_.size(); ++member) {
    if (!is_cut && member % etp != layout.etp.rank()) continue;
    const int64_t first = member / etp * num_local;
    peers_.push_back(member);
    rows_for_.push_back({begin[first], begin[first + num_local] - begin[first]});
    offsets.push_back(static_cast<int64_t>(to_send.size()));
    for (int64_t e = first; e < first + num_local; ++e) to_send.push_back(begin[e + 1] - begin[e]);
  }
  counts_.resize(to_send.size());
  const int64_t bytes = num_local * static_cast<int64_t>(sizeof(int64_t));
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (size_t p = 0; p < peers_.size(); ++p) {
    if (peers_[p] == group_.rank()) {
      std::memcpy(counts_.data() + offsets[p], to_send.data() + offsets[p],
                  static_cast<size_t>(bytes));
      continue;
    }
    out.push_back({peers_[p], to_send.data() + offsets[p], bytes});
    in.push_back({peers_[p], counts_.data() + offsets[p], bytes});
  }
  group_.exchange(out, in);
  row_begin_ = Tensor::zeros({num_local + 1}, DType::kI64);
  for (int64_t e = 0; e < num_local; ++e) {
    int64_t rows = 0;
    for (size_t p = 0; p < peers_.size(); ++p) {
      rows += counts_[p * static_cast<size_t>(num_local) + static_cast<size_t>(e)];
    }
    row_begin_.i64()[e + 1] = row_begin_.i64()[e] + rows;
  }
}

int64_t ExpertExchange::rows_of(size_t source) const {
  int64_t rows = 0;
  for (int64_t e = 0; e < num_experts(); ++e) {
    rows += counts_[source * static_cast<size_t>(num_experts()) + static_cast<size_t>(e)];
  }
  return rows;
}

/// Between rows by source and rows by expert.
Tensor ExpertExchange::reorder(const Tensor& rows, bool by_expert) const {
  const int64_t width = rows.dim(1);
  Tensor result = Tensor::empty({num_rows(), width});
  int64_t at = 0;  // among the rows by source
  std::vector<int64_t> next(row_begin_.i64(), row_begin_.i64() + num_experts());
  for (size_t p = 0; p < peers_.size(); ++p) {
    for (size_t e = 0; e < next.size(); ++e) {
      const int64_t n = counts_[p * next.size() + e];
      if (n == 0) continue;
      const int64_t from = by_expert ? at : next[e], to = by_expert ? next[e] : at;
      std::memcpy(result.f32() + to * width, rows.f32() + from * width,
                  static_cast<size_t>(n * width) * sizeof(float));
      at += n;
      next[e] += n;
    }
  }
  return result;
}

Tensor ExpertExchange::to_experts(const Tensor& rows) const {
  if (group_.size() == 1) return rows;
  const int64_t width = rows.dim(1), row_bytes = width * static_cast<int64_t>(sizeof(float));
  const Tensor received = Tensor::empty({num_rows(), width});
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  float* to = received.f32();
  for (size_t p = 0; p < peers_.size(); ++p) {
    const float* from = rows.f32() + rows_for_[p].begin * width;
    const int64_t num_received = rows_of(p);
    if (peers_[p] == group_.rank()) {
      if (num_received > 0) std::memcpy(to, from, static_cast<size_t>(num_received * row_bytes));
    } else {
      out.push_back({peers_[p], from, rows_for_[p].count * row_bytes});
      in.push_back({peers_[p], to, num_received * row_bytes});
    }
    to += num_received * width;
  }
  group_.exchange(out, in);
  return reorder(received, /*by_expert=*/true);
}

Tensor ExpertExchange::from_experts(const Tensor& rows, dist::SumOrder order) const {
  if (group_.size() == 1) return rows;
  const int64_t width = rows.dim(1), row_bytes = width * static_cast<int64_t>(sizeof(float));
  const Tensor by_source = reorder(rows, /*by_expert=*/false);
  // One tensor for each of the ranks that share an expert.
  std::vector<Tensor> parts;
  for (int i = 0; i < num_parts_; ++i) parts.push_back(Tensor::empty({num_own_rows_, width}));
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  const float* from = by_source.f32();
  for (size_t p = 0; p < peers_.size(); ++p) {
    const Tensor& part = parts[p % static_cast<size_t>(num_parts_)];  // etp counts first
    float* to = part.f32() + rows_for_[p].begin * width;
    const int64_t num_received = rows_of(p);
    if (peers_[p] == group_.rank()) {
      if (num_received > 0) std::memcpy(to, from, static_cast<size_t>(num_received * row_bytes));
    } else {
      out.push_back({peers_[p], from, num_received * row_bytes});
      in.push_back({peers_[p], to, rows_for_[p].count * row_bytes});
    }
    from += num_received * width;
  }
  group_.exchange(out, in);
  if (num_parts_ == 1) return parts[0];
  std::vector<const float*> pointers;
  for (const Tensor& part : parts) pointers.push_back(part.f32());
  dist::add_in_order(pointers, parts[0].numel(), order, parts[0].f32());
  return parts[0];
}

}  // namespace fathom
