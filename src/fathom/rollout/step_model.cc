#include "fathom/rollout/step_model.h"

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/model/forward.h"

namespace fathom {

Tensor StepModel::draft(std::span<DraftSequence* const>) {
  throw InternalError("this model cannot draft");
}

void StepModel::end_draft(std::span<DraftSequence>) {}

Tensor WeightsModel::step(const Batch& batch, const std::vector<int64_t>& rows) {
  // The streams of the token before the batch are overwritten below.
  const Tensor streams = forward_layers(ctx_, weights_, batch, embed(ctx_, weights_, batch));
  if (batch.segments.front().state->layout().streams_size > 0) keep_streams(batch, streams);
  if (rows.empty()) return Tensor();
  return logits(ctx_, weights_, collapse(ctx_, weights_, batch, streams, rows));
}

/// Brings the MTP module's window up to the token before the last, whose own row needs the token
/// that is drawn next, and keeps the last token's streams for it.
void WeightsModel::keep_streams(const Batch& batch, const Tensor& streams) {
  const int64_t M = streams.dim(1), D = streams.dim(2);
  const size_t row_bytes = static_cast<size_t>(M * D) * sizeof(float);
  const auto copy = [&](float* to, const float* from, int64_t num_rows) {
    copy_memory(ctx_.device, to, from, static_cast<size_t>(num_rows) * row_bytes);
  };
  const Tensor earlier = Tensor::empty(ctx_, {batch.num_tokens(), M, D});
  Batch shifted;  // row t: the streams of token t and the id of token t + 1, at position t
  int64_t row = 0;
  for (const Segment& segment : batch.segments) {
    const StateLayout& layout = segment.state->layout();
    const bool is_first = segment.start_pos == 0;
    const int64_t count = segment.num_tokens - is_first;
    float* out = earlier.f32() + shifted.num_tokens() * M * D;
    const float* fresh = streams.f32() + row * M * D;
    if (!is_first) copy(out, segment.state->block().streams(layout).data(), 1);
    copy(out + (is_first ? 0 : M * D), fresh, segment.num_tokens - 1);
    if (count > 0) {
      const auto ids = batch.token_ids.begin() + row + is_first;
      shifted.token_ids.insert(shifted.token_ids.end(), ids, ids + count);
      Segment s;
      s.start_pos = segment.start_pos - !is_first;
      s.num_tokens = count;
      s.state = segment.state;
      for (const Checkpoint& c : segment.checkpoints) {
        s.checkpoints.push_back({c.num_tokens - 1, c.block});
      }
      shifted.segments.push_back(s);
    }
    for (const Checkpoint& c : segment.checkpoints) {
      copy(c.block->streams(layout).data(), fresh + (c.num_tokens - 1 - segment.start_pos) * M * D,
           1);
    }
    copy(segment.state->block().streams(layout).data(), fresh + (segment.num_tokens - 1) * M * D,
         1);
    row += segment.num_tokens;
  }
  if (shifted.segments.empty()) return;
  const std::vector<int32_t> next_ids = shifted.token_ids;
  mtp_window(ctx_, weights_, shifted, earlier.rows(0, shifted.num_tokens()), next_ids);
}

Tensor WeightsModel::draft(std::span<DraftSequence* const> sequences) {
  const ModelConfig& c = weights_.config;
  const int64_t S = static_cast<int64_t>(sequences.size());
  const Tensor streams = Tensor::empty(ctx_, {S, c.hc_mult, c.hidden_size});
  Batch batch;
  std::vector<int64_t> rows;
  for (int64_t s = 0; s < S; ++s) {
    DraftSequence& sequence = *sequences[static_cast<size_t>(s)];
    SequenceState* state = sequence.state;
    if (sequence.depth == 0) {
      const std::span<float> last = state->block().streams(state->layout());
      sequence.streams = Tensor::empty(ctx_, {1, c.hc_mult, c.hidden_size});
      copy_memory(ctx_.device, sequence.streams.bytes(), last.data(), last.size_bytes());
      const std::span<const uint8_t> window = state->layer(c.num_hidden_layers).window;
      sequence.window = Tensor::empty(ctx_, {static_cast<int64_t>(window.size())}, DType::kU8);
      copy_memory(ctx_.device, sequence.window.bytes(), window.data(), window.size());
    }
    copy_memory(ctx_.device, streams.rows(s, s + 1).bytes(), sequence.streams.bytes(),
                static_cast<size_t>(sequence.streams.num_bytes()));
    batch.token_ids.push_back(sequence.token_id);
    Segment segment;
    segment.start_pos = state->num_tokens() - 1 + sequence.depth;
    segment.num_tokens = 1;
    segment.state = state;
    batch.segments.push_back(segment);
    rows.push_back(s);
    ++sequence.depth;
  }
  const Tensor out = mtp(ctx_, weights_, batch, streams, batch.token_ids);
  for (int64_t s = 0; s < S; ++s) {
    sequences[static_cast<size_t>(s)]->streams = out.rows(s, s + 1);
  }
  return logits(ctx_, weights_, mtp_collapse(ctx_, weights_, batch, out, rows));
}

void WeightsModel::end_draft(std::span<DraftSequence> sequences) {
  for (DraftSequence& sequence : sequences) {
    if (sequence.depth == 0) continue;
    const std::span<uint8_t> window =
        sequence.state->layer(weights_.config.num_hidden_layers).window;
    copy_memory(ctx_.device, window.data(), sequence.window.bytes(), window.size());
    sequence.depth = 0;
  }
}

}  // namespace fathom
