// The gradient of embedding.h in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

/// table [vocab, D] -> out [T, copies, D]
std::vector<double> embedding_ref(const std::vector<double>& table, const std::vector<int32_t>& ids,
                                  int64_t D, int64_t copies);

/// dtable [vocab, D], from zero.
std::vector<double> embedding_bwd_ref(const std::vector<double>& dout,
                                      const std::vector<int32_t>& ids, int64_t vocab, int64_t D,
                                      int64_t copies);

}  // namespace fathom
