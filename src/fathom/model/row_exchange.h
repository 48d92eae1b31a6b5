// Rows and columns of activations between the ranks of a layout. A group of one rank moves nothing
// and copies nothing. All members call with the same sizes. Tensors lie on the host.
//
// "Rows of a range, shared" means: member i has the rows share_of_rows(range, i, size).
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/dist/group.h"
#include "fathom/model/layout.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// All rows of a shared range. @param mine [own rows, ...]. @return [range.count, ...].
Tensor gather_rows_of(const dist::Group& group, RowRange range, const Tensor& mine);

/// This member's rows of a shared range, the same memory. @param all [range.count, ...].
Tensor own_rows_of(const dist::Group& group, RowRange range, const Tensor& all);

/// The sum over the members of their tensors, of which each keeps its own rows.
/// @param partial [range.count, ...]. @return [own rows, ...].
Tensor sum_own_rows_of(const dist::Group& group, RowRange range, const Tensor& partial,
                       dist::SumOrder order);

/// Columns side by side: member i's [T, n] become columns [i n, (i + 1) n) of [T, n size].
Tensor gather_columns(const dist::Group& group, const Tensor& mine);

/// Columns [begin, begin + count) of [T, N] in fresh memory.
Tensor columns_of(const Tensor& x, int64_t begin, int64_t count);

/// Rows that the members have between them, put in order: row r of the result is the next one of
/// member owners[r]. @param mine this member's, in that order. @return [owners.size(), ...].
Tensor merge_rows(const dist::Group& group, const std::vector<int>& owners, const Tensor& mine);

}  // namespace fathom
