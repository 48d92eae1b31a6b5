#include "fathom/kernels/embedding/embedding_ref.h"

#include <cstddef>

namespace fathom {

std::vector<double> embedding_ref(const std::vector<double>& table, const std::vector<int32_t>& ids,
                                  int64_t D, int64_t copies) {
  std::vector<double> out;
  for (const int32_t id : ids) {
    for (int64_t c = 0; c < copies; ++c) {
      out.insert(out.end(), table.begin() + id * D, table.begin() + (id + 1) * D);
    }
  }
  return out;
}

std::vector<double> embedding_bwd_ref(const std::vector<double>& dout,
                                      const std::vector<int32_t>& ids, int64_t vocab, int64_t D,
                                      int64_t copies) {
  std::vector<double> dtable(static_cast<size_t>(vocab * D));
  size_t at = 0;
  for (const int32_t id : ids) {
    for (int64_t c = 0; c < copies; ++c) {
      for (int64_t d = 0; d < D; ++d) dtable[static_cast<size_t>(id * D + d)] += dout[at++];
    }
  }
  return dtable;
}

}  // namespace fathom
