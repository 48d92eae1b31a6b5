#include "fathom/rollout/step_model.h"

#include <algorithm>
#include <cstring>

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
  return logits(ctx_, weights_, collapse(ctx_, weights_, streams, rows));
}

/// Brings the MTP module's window up to the token before the last, whose own row needs the token
/// that is drawn next, and keeps the last token's streams for it.
void WeightsModel::keep_streams(const Batch& batch, const Tensor& streams) {
  const int64_t M = streams.dim(1), D = streams.dim(2);
  const size_t row_bytes = static_cast<size_t>(M * D) * sizeof(float);
  Tensor earlier = Tensor::empty({batch.num_tokens(), M, D});
  Batch shifted;  // row t: the streams of token t and the id of token t + 1, at position t
  int64_t row = 0;
  for (const Segment& segment : batch.segments) {
    const StateLayout& layout = segment.state->layout();
    const bool is_first = segment.start_pos == 0;
    const int64_t count = segment.num_tokens - is_first;
    float* out = earlier.f32() + shifted.num_tokens() * M * D;
    const float* fresh = streams.f32() + row * M * D;
    if (!is_first) std::memcpy(out, segment.state->block().streams(layout).data(), row_bytes);
    std::memcpy(out + (is_first ? 0 : M * D), fresh,
                static_cast<size_t>(segment.num_tokens - 1) * row_bytes);
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
      std::memcpy(c.block->streams(layout).data(),
                  fresh + (c.num_tokens - 1 - segment.start_pos) * M * D, row_bytes);
    }
    std::memcpy(segment.state->block().streams(layout).data(),
                fresh + (segment.num_tokens - 1) * M * D, row_bytes);
    row += segment.num_tokens;
  }
  if (shifted.segments.empty()) return;
  const std::vector<int32_t> next_ids = shifted.token_ids;
  mtp_window(ctx_, weights_, shifted, earlier.rows(0, shifted.num_tokens()), next_ids);
}

Tensor WeightsModel::draft(std::span<DraftSequence* const> sequences) {
  const ModelConfig& c = weights_.config;
  const int64_t S = static_cast<int64_t>(sequences.size());
  const size_t width = static_cast<size_t>(c.hc_mult * c.hidden_size);
  Tensor streams = Tensor::empty({S, c.hc_mult, c.hidden_size});
  Batch batch;
  std::vector<int64_t> rows;
  for (int64_t s = 0; s < S; ++s) {
    DraftSequence& sequence = *sequences[static_cast<size_t>(s)];
    SequenceState* state = sequence.state;
    if (sequence.depth == 0) {
      const std::span<const float> last = state->block().streams(state->layout());
      sequence.streams.assign(last.begin(), last.end());
      const std::span<const uint8_t> window = state->layer(c.num_hidden_layers).window;
      sequence.window.assign(window.begin(), window.end());
    }
    std::copy(sequence.streams.begin(), sequence.streams.end(),
              streams.f32() + static_cast<size_t>(s) * width);
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
    const float* last = out.f32() + static_cast<size_t>(s) * width;
    sequences[static_cast<size_t>(s)]->streams.assign(last, last + width);
  }
  return logits(ctx_, weights_, mtp_collapse(ctx_, weights_, out, rows));
}

void WeightsModel::end_draft(std::span<DraftSequence> sequences) {
  for (DraftSequence& sequence : sequences) {
    if (sequence.depth == 0) continue;
    const std::span<uint8_t> window =
        sequence.state->layer(weights_.config.num_hidden_layers).window;
    std::copy(sequence.window.begin(), sequence.window.end(), window.begin());
    sequence.depth = 0;
  }
}

}  // namespace fathom
