// rows.h in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

std::vector<double> gather_rows_ref(const std::vector<double>& x, const std::vector<int64_t>& rows,
                                    int64_t width);
/// out with the rows of `in` added.
std::vector<double> add_rows_ref(const std::vector<double>& in, const std::vector<int64_t>& rows,
                                 int64_t width, std::vector<double> out);
std::vector<double> add_to_streams_ref(int64_t T, int64_t M, int64_t D,
                                       const std::vector<double>& e, std::vector<double> streams);
std::vector<double> sum_streams_ref(int64_t T, int64_t M, int64_t D, const std::vector<double>& d);

}  // namespace fathom
