#include "fathom/kernels/rows/rows_ref.h"

#include <cstddef>

namespace fathom {

std::vector<double> gather_rows_ref(const std::vector<double>& x, const std::vector<int64_t>& rows,
                                    int64_t width) {
  std::vector<double> out;
  for (const int64_t row : rows) {
    for (int64_t i = 0; i < width; ++i) out.push_back(x[static_cast<size_t>(row * width + i)]);
  }
  return out;
}

std::vector<double> add_rows_ref(const std::vector<double>& in, const std::vector<int64_t>& rows,
                                 int64_t width, std::vector<double> out) {
  for (size_t k = 0; k < in.size(); ++k) {
    const int64_t r = static_cast<int64_t>(k) / width, i = static_cast<int64_t>(k) % width;
    out[static_cast<size_t>(rows[static_cast<size_t>(r)] * width + i)] += in[k];
  }
  return out;
}

std::vector<double> add_to_streams_ref(int64_t T, int64_t M, int64_t D,
                                       const std::vector<double>& e, std::vector<double> streams) {
  for (int64_t k = 0; k < T * M * D; ++k) {
    streams[static_cast<size_t>(k)] += e[static_cast<size_t>(k / (M * D) * D + k % D)];
  }
  return streams;
}

std::vector<double> sum_streams_ref(int64_t T, int64_t M, int64_t D, const std::vector<double>& d) {
  std::vector<double> out(static_cast<size_t>(T * D), 0.0);
  for (int64_t k = 0; k < T * M * D; ++k) {
    out[static_cast<size_t>(k / (M * D) * D + k % D)] += d[static_cast<size_t>(k)];
  }
  return out;
}

}  // namespace fathom
