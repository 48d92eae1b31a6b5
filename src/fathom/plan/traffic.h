// The messages of a training step, as lists: what a rank sends in a layer, forward and backward, at
// the ends of the model and at the end of a step.
//
// Sums that decide bits of the forward travel as fp32 partial sums, one per rank, and are added in
// the documented order; nothing is left to a library's all-reduce. Experts are taken to be hit
// evenly.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/dist/mesh.h"
#include "fathom/plan/request.h"

namespace fathom {

enum class Traffic {
  kStreams,         // pipeline: [T, M, D] to the next stage
  kStreamGradient,  // and its gradient back
  kSequenceGather,  // sequence parallel: rows before a product
  kPartialSums,     // tensor parallel: row-parallel products, and gradients behind column-parallel
                    // ones
  kContextGather,   // context parallel: window keys, compressed keys, indexer keys
  kContextSum,      // their gradients back to their owners
  kExpertDispatch,  // rows to the experts' ranks
  kExpertCombine,   // and back
  kExpertTensor,    // rows and partial sums among the ranks of one expert
  kEmbedding,       // vocabulary-parallel embedding
  kHead,            // vocabulary-parallel log-softmax
  kReplicatedGradient,  // of parameters that tensor-parallel ranks hold whole
  kGradient,            // to the ranks that keep the optimizer state
  kWeights,             // and the moved weights back
};
inline constexpr int kNumTrafficKinds = 14;
const char* traffic_name(Traffic kind);

/// One collective; axes of size 1 have none.
struct CommOp {
  Traffic kind;
  dist::Axis axis;
  int64_t num_bytes;  // that each member sends
};

class TrafficModel {
 public:
  explicit TrafficModel(const PlanRequest& request);

  std::vector<CommOp> layer_forward(int64_t ratio) const;
  /// With recomputation the forward's once more, first.
  std::vector<CommOp> layer_backward(int64_t ratio) const;
  std::vector<CommOp> embed_forward() const;
  std::vector<CommOp> embed_backward() const;
  std::vector<CommOp> head_forward() const;
  std::vector<CommOp> head_backward() const;
  int64_t stream_bytes() const;           // of kStreams, from each rank
  int64_t stream_gradient_bytes() const;  // of kStreamGradient

 private:
  int64_t share(int64_t n, int parts) const { return (n + parts - 1) / parts; }
  void add(std::vector<CommOp>* ops, Traffic kind, dist::Axis axis, int degree,
           int64_t num_bytes) const;
  void gather_rows(std::vector<CommOp>* ops, int64_t bytes_per_row) const;
  void sum_partials(std::vector<CommOp>* ops, int64_t width) const;
  void experts(std::vector<CommOp>* ops, Traffic there, Traffic back, int64_t bytes_there,
               int64_t bytes_back) const;

  const PlanRequest& request_;
  const ModelConfig& c_;
  int tp_, cp_, ep_, etp_;
  bool is_sequence_parallel_;
  bool wo_b_is_split_, shared_is_split_, experts_are_split_, vocabulary_is_split_;
  int64_t activation_;
  int64_t tokens_cp_;    // of one rank of cp
  int64_t tokens_;       // of one rank where the sequence is split over tp
  int64_t stream_rows_;  // [T] of the streams that a rank holds
};

}  // namespace fathom
