#include "fathom/plan/traffic.h"

#include "fathom/base/error.h"

namespace fathom {
namespace {

using dist::Axis;
constexpr int64_t kF32 = 4;

}  // namespace

const char* traffic_name(Traffic kind) {
  switch (kind) {
    case Traffic::kStreams:
      return "streams";
    case Traffic::kStreamGradient:
      return "stream gradient";
    case Traffic::kSequenceGather:
      return "sequence gather";
    case Traffic::kPartialSums:
      return "partial sums";
    case Traffic::kContextGather:
      return "context gather";
    case Traffic::kContextSum:
      return "context gradient";
    case Traffic::kExpertDispatch:
      return "expert dispatch";
    case Traffic::kExpertCombine:
      return "expert combine";
    case Traffic::kExpertTensor:
      return "expert tensor";
    case Traffic::kEmbedding:
      return "embedding";
    case Traffic::kHead:
      return "head";
    case Traffic::kReplicatedGradient:
      return "replicated gradient";
    case Traffic::kGradient:
      return "gradient";
    case Traffic::kWeights:
      return "weights";
  }
  FATHOM_ASSERT(false, "unknown traffic");
}

TrafficModel::TrafficModel(const PlanRequest& r)
    : request_(r),
      c_(r.config),
      tp_(r.layout.mesh.tp),
      cp_(r.layout.mesh.cp),
      ep_(r.layout.mesh.ep),
      etp_(r.layout.mesh.etp),
      is_sequence_parallel_(r.sequence_parallel && tp_ > 1),
      activation_(r.activation_bytes()) {
  const auto split = [&](const char* name) { return split_of(c_, r.layout, name); };
  wo_b_is_split_ = split("layers.0.attn.wo_b.weight") == Split::kColumnsTp;
  shared_is_split_ = split("layers.0.ffn.shared_experts.w2.weight") == Split::kColumnsTp;
  experts_are_split_ = split("layers.0.ffn.experts.0.w2.weight") == Split::kExpertColumns;
  vocabulary_is_split_ = split("head.weight") == Split::kVocabularyTp;
  tokens_cp_ = share(r.micro_batch_tokens(), cp_);
  tokens_ = share(tokens_cp_, tp_);
  stream_rows_ = is_sequence_parallel_ ? tokens_ : tokens_cp_;
}

void TrafficModel::add(std::vector<CommOp>* ops, Traffic kind, Axis axis, int degree,
                       int64_t num_bytes) const {
  if (degree > 1 && num_bytes > 0) ops->push_back({kind, axis, num_bytes});
}

/// Every rank of tp gets all rows of its part of the sequence.
void TrafficModel::gather_rows(std::vector<CommOp>* ops, int64_t bytes_per_row) const {
  add(ops, Traffic::kSequenceGather, Axis::kTp, tp_, tokens_ * bytes_per_row * (tp_ - 1));
}

/// fp32 partials of [tokens, width] to the rank whose rows they are, which adds them.
void TrafficModel::sum_partials(std::vector<CommOp>* ops, int64_t width) const {
  add(ops, Traffic::kPartialSums, Axis::kTp, tp_, tokens_ * width * kF32 * (tp_ - 1));
  if (!is_sequence_parallel_) gather_rows(ops, width * activation_);
}

void TrafficModel::experts(std::vector<CommOp>* ops, Traffic there, Traffic back,
                           int64_t bytes_there, int64_t bytes_back) const {
  // Of the rows (tokens_ * K, evenly spread) those for other ranks.
  const int64_t rows = tokens_ * c_.num_experts_per_tok, away = share(rows * (ep_ - 1), ep_);
  add(ops, there, Axis::kEp, ep_, away * bytes_there);
  if (experts_are_split_) {
    add(ops, Traffic::kExpertTensor, Axis::kEtp, etp_, rows * bytes_there * (etp_ - 1));
    add(ops, Traffic::kExpertTensor, Axis::kEtp, etp_, rows * c_.hidden_size * kF32 * (etp_ - 1));
  }
  add(ops, back, Axis::kEp, ep_, away * bytes_back);
}

std::vector<CommOp> TrafficModel::layer_forward(int64_t ratio) const {
  const int64_t D = c_.hidden_size, a = activation_;
  std::vector<CommOp> ops;
  if (is_sequence_parallel_) gather_rows(&ops, D * a);
  const auto gather_keys = [&](int64_t rows, int64_t width) {
    add(&ops, Traffic::kContextGather, Axis::kCp, cp_, rows * width * a * (cp_ - 1));
  };
  gather_keys(tokens_cp_, c_.head_dim);
  if (ratio > 0) gather_keys(share(tokens_cp_, static_cast<int>(ratio)), c_.head_dim);
  if (ratio == 4) gather_keys(share(tokens_cp_, 4), c_.index_head_dim);
  if (wo_b_is_split_) {
    sum_partials(&ops, D);
  } else {
    // Every rank computes the product from all groups' outputs.
    add(&ops, Traffic::kSequenceGather, Axis::kTp, tp_,
        tokens_cp_ * c_.o_groups * c_.o_lora_rank / tp_ * a * (tp_ - 1));
  }
  experts(&ops, Traffic::kExpertDispatch, Traffic::kExpertCombine, D * a, D * a);
  if (!is_sequence_parallel_) gather_rows(&ops, D * a);
  if (shared_is_split_) {
    if (is_sequence_parallel_) gather_rows(&ops, D * a);
    sum_partials(&ops, D);
  }
  return ops;
}

std::vector<CommOp> TrafficModel::layer_backward(int64_t ratio) const {
  const int64_t D = c_.hidden_size, hd = c_.head_dim;
  std::vector<CommOp> ops;
  if (request_.recompute) ops = layer_forward(ratio);
  if (shared_is_split_) {
    if (is_sequence_parallel_) gather_rows(&ops, D * kF32);
    sum_partials(&ops, D);
  }
  experts(&ops, Traffic::kExpertCombine, Traffic::kExpertDispatch, D * kF32, D * kF32);
  if (!is_sequence_parallel_) gather_rows(&ops, D * kF32);
  if (is_sequence_parallel_) gather_rows(&ops, D * kF32);
  // What the heads of all ranks share: the query's low rank, window keys and compressed keys.
  const int64_t entries = ratio > 0 ? share(tokens_cp_, static_cast<int>(ratio)) : 0;
  const int64_t shared = tokens_cp_ * (c_.q_lora_rank + hd) + entries * hd;
  add(&ops, Traffic::kPartialSums, Axis::kTp, tp_, 2 * share(shared * (tp_ - 1), tp_) * kF32);
  add(&ops, Traffic::kContextSum, Axis::kCp, cp_, (tokens_cp_ + entries) * hd * kF32 * (cp_ - 1));
  return ops;
}

std::vector<CommOp> TrafficModel::embed_forward() const {
  std::vector<CommOp> ops;
  if (!vocabulary_is_split_) return ops;
  const int64_t row = c_.hidden_size * activation_;
  add(&ops, Traffic::kEmbedding, Axis::kTp, tp_, tokens_ * row * (tp_ - 1));
  if (!is_sequence_parallel_) gather_rows(&ops, row);
  return ops;
}

std::vector<CommOp> TrafficModel::embed_backward() const {
  std::vector<CommOp> ops;
  if (vocabulary_is_split_ && is_sequence_parallel_) gather_rows(&ops, c_.hidden_size * kF32);
  return ops;
}

std::vector<CommOp> TrafficModel::head_forward() const {
  std::vector<CommOp> ops;
  const int64_t rows = share(request_.micro_batch_rows(), cp_);
  if (is_sequence_parallel_) {
    add(&ops, Traffic::kHead, Axis::kTp, tp_,
        share(rows, tp_) * c_.hidden_size * activation_ * (tp_ - 1));
  }
  if (vocabulary_is_split_) {
    const VocabularyShard mine = vocabulary_shard(c_, request_.layout, 0);
    // One (max, sum) a chunk, and the target's logit.
    const int64_t row = (2 * (mine.end_chunk - mine.first_chunk) + 1) * kF32;
    add(&ops, Traffic::kHead, Axis::kTp, tp_, rows * row * (tp_ - 1));
  }
  return ops;
}

std::vector<CommOp> TrafficModel::head_backward() const {
  std::vector<CommOp> ops;
  if (!vocabulary_is_split_) return ops;
  const int64_t rows = share(request_.micro_batch_rows(), cp_);
  add(&ops, Traffic::kHead, Axis::kTp, tp_,
      share(rows, tp_) * c_.hidden_size * kF32 * (tp_ - 1) * (is_sequence_parallel_ ? 1 : 2));
  return ops;
}

int64_t TrafficModel::stream_bytes() const {
  return stream_rows_ * c_.hc_mult * c_.hidden_size * activation_;
}

int64_t TrafficModel::stream_gradient_bytes() const {
  return stream_rows_ * c_.hc_mult * c_.hidden_size * kF32;
}

}  // namespace fathom
