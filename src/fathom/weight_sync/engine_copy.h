// All of a model on every rank, for engines whose layout is not the trainer's.
//
// What travels is what the trainer's kernels read, in the format that they read it in: two bytes a
// value where it has been rounded to BF16 (which FP8 blocks decode to exactly), four where it has
// not. The copy has no masters, and its bits are the trainer's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/model/weights.h"
#include "fathom/parallel/rank_groups.h"

namespace fathom {

class EngineCopy {
 public:
  /// Takes memory; update() fills it. All ranks make one.
  /// @param trained this rank's parts, which outlive the copy. @param precision the engine's. Where
  /// it is not the trainer's, masters travel, and are rounded here.
  EngineCopy(const ExecContext& ctx, const RankGroups& groups, const Weights& trained,
             Precision precision);

  /// Makes the copy what the trainer has now. All ranks call it.
  void update(const ExecContext& ctx);
  const Weights& weights() const { return weights_; }
  int64_t num_bytes() const { return num_bytes_; }  // sent by all ranks in one update, counted once

 private:
  /// Of one tensor, on the rank that sends it.
  struct Part {
    int rank = 0;
    std::string name;
    int axis = 0;
    int64_t begin = 0, count = 0;
    Parameter* whole = nullptr;          // of the copy
    const Parameter* trained = nullptr;  // on the rank that sends it
    int64_t num_elements = 0, num_bytes = 0;
  };
  void find_parts();
  bool is_narrow(const Parameter& p) const;
  void pack(const Part& part, char* to) const;
  void unpack(const Part& part, const char* from);

  RankGroups groups_;
  const Weights& trained_;
  Weights weights_;
  bool sends_masters_ = false;
  std::vector<Part> parts_;  // rank by rank, of a rank by name
  int64_t num_bytes_ = 0;
};

}  // namespace fathom
