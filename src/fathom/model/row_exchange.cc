#include "fathom/model/row_exchange.h"

#include <cstring>

#include "fathom/base/error.h"

namespace fathom {
namespace {

using dist::Group;
using dist::Incoming;
using dist::Outgoing;

/// Elements of one row.
int64_t width_of(const Tensor& x) {
  int64_t n = 1;
  for (size_t d = 1; d < x.shape().size(); ++d) n *= x.shape()[d];
  return n;
}

Tensor with_rows(const Tensor& like, int64_t rows) {
  FATHOM_ASSERT(like.device() == nullptr, "several ranks compute on CPUs");
  std::vector<int64_t> shape = like.shape();
  shape[0] = rows;
  return Tensor::empty(std::move(shape), like.dtype());
}

/// Everyone's pieces, one behind another, to all. @param counts rows of each member.
void gather_pieces(const Group& group, const std::vector<int64_t>& counts, const Tensor& mine,
                   Tensor* all) {
  const int64_t row_bytes = width_of(mine) * dtype_size(mine.dtype());
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  uint8_t* to = all->bytes();
  for (int i = 0; i < group.size(); ++i) {
    const int64_t bytes = counts[static_cast<size_t>(i)] * row_bytes;
    if (i == group.rank()) {
      FATHOM_ASSERT(bytes == mine.num_bytes(), mine.shape_string());
      if (bytes > 0) std::memcpy(to, mine.bytes(), static_cast<size_t>(bytes));
    } else {
      out.push_back({i, mine.bytes(), mine.num_bytes()});
      in.push_back({i, to, bytes});
    }
    to += bytes;
  }
  group.exchange(out, in);
}

}  // namespace

Tensor gather_rows_of(const Group& group, RowRange range, const Tensor& mine) {
  if (group.size() == 1) return mine;
  Tensor all = with_rows(mine, range.count);
  std::vector<int64_t> counts;
  for (int i = 0; i < group.size(); ++i) {
    counts.push_back(share_of_rows(range, i, group.size()).count);
  }
  gather_pieces(group, counts, mine, &all);
  return all;
}

Tensor own_rows_of(const Group& group, RowRange range, const Tensor& all) {
  if (group.size() == 1) return all;
  const RowRange own = share_of_rows({0, range.count}, group.rank(), group.size());
  return all.rows(own.begin, own.end());
}

Tensor sum_own_rows_of(const Group& group, RowRange range, const Tensor& partial,
                       dist::SumOrder order) {
  if (group.size() == 1) return partial;
  const int64_t width = width_of(partial);
  const auto share = [&](int i) { return share_of_rows({0, range.count}, i, group.size()); };
  const RowRange own = share(group.rank());
  Tensor sum = with_rows(partial, own.count);
  std::vector<Tensor> received(static_cast<size_t>(group.size()));
  std::vector<const float*> parts;
  std::vector<Outgoing> out;
  std::vector<Incoming> in;
  for (int i = 0; i < group.size(); ++i) {
    if (i == group.rank()) {
      parts.push_back(partial.f32() + own.begin * width);
      continue;
    }
    Tensor& part = received[static_cast<size_t>(i)];
    part = with_rows(partial, own.count);
    parts.push_back(part.f32());
    const RowRange theirs = share(i);
    out.push_back({i, partial.f32() + theirs.begin * width,
                   theirs.count * width * static_cast<int64_t>(sizeof(float))});
    in.push_back({i, part.f32(), part.num_bytes()});
  }
  group.exchange(out, in);
  dist::add_in_order(parts, sum.numel(), order, sum.f32());
  return sum;
}

Tensor gather_columns(const Group& group, const Tensor& mine) {
  if (group.size() == 1) return mine;
  const int64_t T = mine.dim(0), n = width_of(mine), N = n * group.size();
  const std::vector<int64_t> counts(static_cast<size_t>(group.size()), T);
  Tensor all = with_rows(mine, T * group.size()), result = Tensor::empty({T, N});
  gather_pieces(group, counts, mine, &all);
  for (int64_t i = 0; i < group.size(); ++i) {
    for (int64_t t = 0; t < T; ++t) {
      std::memcpy(result.f32() + t * N + i * n, all.f32() + (i * T + t) * n,
                  static_cast<size_t>(n) * sizeof(float));
    }
  }
  return result;
}

Tensor columns_of(const Tensor& x, int64_t begin, int64_t count) {
  const int64_t T = x.dim(0), N = width_of(x);
  Tensor part = Tensor::empty({T, count});
  for (int64_t t = 0; t < T; ++t) {
    std::memcpy(part.f32() + t * count, x.f32() + t * N + begin,
                static_cast<size_t>(count) * sizeof(float));
  }
  return part;
}

Tensor merge_rows(const Group& group, const std::vector<int>& owners, const Tensor& mine) {
  if (group.size() == 1) return mine;
  const auto num_rows = static_cast<int64_t>(owners.size());
  std::vector<int64_t> counts(static_cast<size_t>(group.size()));
  for (int owner : owners) ++counts[static_cast<size_t>(owner)];
  Tensor all = with_rows(mine, num_rows), result = with_rows(mine, num_rows);
  gather_pieces(group, counts, mine, &all);
  std::vector<int64_t> next(counts.size());
  for (size_t i = 1; i < next.size(); ++i) next[i] = next[i - 1] + counts[i - 1];
  const auto row_bytes = static_cast<size_t>(width_of(mine) * dtype_size(mine.dtype()));
  for (size_t r = 0; r < owners.size(); ++r) {
    const int64_t from = next[static_cast<size_t>(owners[r])]++;
    std::memcpy(result.bytes() + r * row_bytes, all.bytes() + static_cast<size_t>(from) * row_bytes,
                row_bytes);
  }
  return result;
}

}  // namespace fathom
