// Routed rows on their way to the ranks that hold their experts, and back.
//
// A rank's rows, sorted by expert and inside an expert by (token, slot), go to the rank of ep that
// has the expert, and where etp shares the expert to all of its members. There they stand by expert
// and inside an expert by rank, which is (token, slot) order over the whole batch, because ranks
// count in the order of their rows. One rank moves and copies nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/dist/group.h"
#include "fathom/model/layout.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

class ExpertExchange {
 public:
  ExpertExchange() = default;
  /// @param row_begin [E + 1] int64, of this rank's rows by expert. Tells the other ranks.
  /// @param is_cut whether etp shares every expert; otherwise each of its members has them whole
  /// and works for the ranks of its own place on the axis.
  ExpertExchange(const Layout& layout, const Tensor& row_begin, bool is_cut);

  int64_t num_experts() const { return row_begin_.dim(0) - 1; }  // of this rank
  int64_t num_rows() const { return row_begin_.i64()[num_experts()]; }
  const Tensor& row_begin() const { return row_begin_; }  // of its experts' rows

  /// rows [R, n] of this rank's tokens -> [num_rows(), n] of this rank's experts.
  Tensor to_experts(const Tensor& rows) const;
  /// What the experts made of them, back where the rows came from; members of etp that share an
  /// expert are summed in the order.
  Tensor from_experts(const Tensor& rows, dist::SumOrder order) const;

 private:
  int64_t rows_of(size_t source) const;
  Tensor reorder(const Tensor& rows, bool by_expert) const;

  dist::Group group_;
  std::vector<int> peers_;          // members of the group that rows go to and come from
  std::vector<RowRange> rows_for_;  // by peer: of this rank's rows
  std::vector<int64_t> counts_;     // [peers, experts] rows that come from each
  int num_parts_ = 1;               // ranks that share an expert
  int64_t num_own_rows_ = 0;
  Tensor row_begin_;
};

}  // namespace fathom
