// Rows that one rank of a group makes and others read: keys of a context's border, compressed
// entries, the tokens behind an entry. And the way back, for their gradients.
#pragma once

#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/dist/group.h"
#include "fathom/model/layout.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// The same on all members. With one member everything is where it is needed: nothing is copied.
struct ContextExchange {
  dist::Group group;
  std::vector<RowRange> owned;   // by member: consecutive ranges, member by member
  std::vector<RowRange> needed;  // by member: consecutive rows that it reads

  RowRange own() const { return owned[static_cast<size_t>(group.rank())]; }
  RowRange seen() const { return needed[static_cast<size_t>(group.rank())]; }

  /// @param mine [own().count, ..] fp32. @return [seen().count, ..].
  Tensor fetch(const ExecContext& ctx, const Tensor& mine) const;
  /// @param grads [seen().count, ..] fp32, this member's part of the gradients of what fetch()
  /// gave.
  /// @return [own().count, ..]: the members' parts added in rank order.
  Tensor give_back(const ExecContext& ctx, const Tensor& grads) const;
};

/// Rows intersected.
RowRange common_rows(RowRange a, RowRange b);

}  // namespace fathom
