#include "fathom/model/layout.h"

#include <algorithm>

namespace fathom {

RowRange share_of_rows(RowRange rows, int index, int parts) {
  const int64_t whole = rows.count / parts, longer = rows.count % parts;
  return {rows.begin + whole * index + std::min<int64_t>(index, longer),
          whole + (index < longer ? 1 : 0)};
}

RowRange Layout::context_rows(int64_t T) const {
  return share_of_rows({0, T}, cp.rank(), cp.size());
}

RowRange Layout::stream_rows(int64_t T) const {
  return sequence_parallel ? routed_rows(T) : context_rows(T);
}

RowRange Layout::routed_rows(int64_t T) const {
  return share_of_rows(context_rows(T), tp.rank(), tp.size());
}

}  // namespace fathom
