// What a forward works on: packed tokens of several sequences, and the records of choices made.
#pragma once

#include <cstdint>
#include <vector>

namespace fathom {

class SequenceState;
struct StateBlock;

/// Routed experts and indexer picks of one sample, addressed by (token position, layer).
/// Rows are -1 until written.
struct ReplayRecord {
  int64_t num_layers = 0, num_slots = 0;  // layers, experts per token
  int64_t num_indexer_layers = 0, index_topk = 0;
  std::vector<int32_t> routes;  // [positions, num_layers, num_slots]
  std::vector<int32_t> picks;   // [positions, num_indexer_layers, index_topk], -1 = hole

  int32_t* route_row(int64_t position, int64_t layer);  // grows the record as needed
  int32_t* pick_row(int64_t position, int64_t indexer_layer);
  const int32_t* route_row(int64_t position, int64_t layer) const;  // null when not recorded
  const int32_t* pick_row(int64_t position, int64_t indexer_layer) const;
  void truncate(int64_t num_positions);  // forgets the rows of later positions
};

/// A copy of the fixed part of a segment's state, made as the segment passes num_tokens.
struct Checkpoint {
  int64_t num_tokens = 0;  // of the sequence; inside the segment, neither its start nor its end
  StateBlock* block = nullptr;
};

/// A run of consecutive tokens of one sequence.
struct Segment {
  int64_t start_pos = 0;  // position of its first token; > 0 needs a state
  int64_t num_tokens = 0;
  SequenceState* state = nullptr;            // null: nothing cached, nothing kept
  const ReplayRecord* replay_in = nullptr;   // use these routes instead of choosing
  ReplayRecord* replay_out = nullptr;        // record the choices made
  std::vector<Checkpoint> checkpoints = {};  // ascending; need a state
};

/// Packed: token_ids holds the segments' tokens one after another.
struct Batch {
  std::vector<int32_t> token_ids;  // [T]
  std::vector<Segment> segments;
  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

}  // namespace fathom
