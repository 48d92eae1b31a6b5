#include "fathom/model/context_exchange.h"

#include <algorithm>
#include <cstring>

#include "fathom/base/error.h"

namespace fathom {
namespace {

std::vector<int64_t> shape_of_rows(const Tensor& rows, int64_t count) {
  std::vector<int64_t> shape = rows.shape();
  shape[0] = count;
  return shape;
}

int64_t row_elements(const Tensor& rows) {
  int64_t n = 1;
  for (size_t i = 1; i < rows.shape().size(); ++i) n *= rows.shape()[i];
  return n;
}

}  // namespace

RowRange common_rows(RowRange a, RowRange b) {
  const int64_t begin = std::max(a.begin, b.begin), end = std::min(a.end(), b.end());
  return {begin, std::max<int64_t>(0, end - begin)};
}

Tensor ContextExchange::fetch(const ExecContext& ctx, const Tensor& mine) const {
  if (group.size() == 1) return mine;
  FATHOM_ASSERT(mine.dim(0) == own().count, mine.dim(0), " rows, owns ", own().count);
  const int64_t width = row_elements(mine);
  const Tensor from = mine.to_host();
  const Tensor all = Tensor::empty(shape_of_rows(mine, seen().count));
  std::vector<dist::Outgoing> out;
  std::vector<dist::Incoming> in;
  const auto bytes = [&](RowRange rows) {
    return rows.count * width * static_cast<int64_t>(sizeof(float));
  };
  const auto owned_at = [&](RowRange rows) {
    return from.f32() + (rows.begin - own().begin) * width;
  };
  const auto seen_at = [&](RowRange rows) {
    return all.f32() + (rows.begin - seen().begin) * width;
  };
  for (int i = 0; i < group.size(); ++i) {
    const size_t member = static_cast<size_t>(i);
    const RowRange to_it = common_rows(own(), needed[member]);
    const RowRange from_it = common_rows(owned[member], seen());
    if (i == group.rank()) {
      if (to_it.count > 0) {
        std::memcpy(seen_at(to_it), owned_at(to_it), static_cast<size_t>(bytes(to_it)));
      }
      continue;
    }
    if (to_it.count > 0) out.push_back({i, owned_at(to_it), bytes(to_it)});
    if (from_it.count > 0) in.push_back({i, seen_at(from_it), bytes(from_it)});
  }
  group.exchange(out, in);
  return ctx.device == nullptr ? all : all.copy_to(ctx.device);
}

Tensor ContextExchange::give_back(const ExecContext& ctx, const Tensor& grads) const {
  if (group.size() == 1) return grads;
  FATHOM_ASSERT(grads.dim(0) == seen().count, grads.dim(0), " rows, sees ", seen().count);
  const int64_t width = row_elements(grads);
  const Tensor from = grads.to_host();
  std::vector<dist::Outgoing> out;
  std::vector<dist::Incoming> in;
  const auto seen_at = [&](RowRange rows) {
    return from.f32() + (rows.begin - seen().begin) * width;
  };
  // A member's part of the rows that are owned here.
  std::vector<RowRange> ranges;
  std::vector<Tensor> parts;
  for (int i = 0; i < group.size(); ++i) {
    const size_t member = static_cast<size_t>(i);
    const RowRange to_it = common_rows(owned[member], seen());
    ranges.push_back(common_rows(own(), needed[member]));
    if (i == group.rank()) {
      parts.push_back(to_it.count == 0 ? Tensor()
                                       : Tensor::view(seen_at(to_it), {to_it.count * width}));
      continue;
    }
    parts.push_back(Tensor::empty({ranges.back().count * width}));
    if (to_it.count > 0) out.push_back({i, seen_at(to_it), to_it.count * width * 4});
    if (ranges.back().count > 0) in.push_back({i, parts.back().f32(), parts.back().num_bytes()});
  }
  group.exchange(out, in);
  const Tensor sum = Tensor::zeros(shape_of_rows(grads, own().count));
  for (size_t i = 0; i < parts.size(); ++i) {
    if (ranges[i].count == 0) continue;
    float* to = sum.f32() + (ranges[i].begin - own().begin) * width;
    const float* part = parts[i].f32();
    for (int64_t k = 0; k < ranges[i].count * width; ++k) to[k] += part[k];
  }
  return ctx.device == nullptr ? sum : sum.copy_to(ctx.device);
}

}  // namespace fathom
