// What V4 remembers of one sequence between calls: a block of fixed size (window rings, compressor
// accumulators), which a copy duplicates, and append-only histories (compressed entries, indexer
// keys) in pages, which a copy shares. A copy is a fork and a snapshot at once.
//
//   kind of piece      holds                                              one per
//   window             rings of the last W latent rows, all layers        state, checkpoint
//   accumulators       open compressor windows, last streams, all layers  state, checkpoint
//   ratio_<r>_entries  compressed latent rows of the layers with ratio r  page of tokens
//   indexer_keys       indexer keys of all ratio-4 layers                 page of tokens
//   replay_rows        routes and picks (for caches of prefixes)          page of tokens
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fathom/kernels/quant/entry_codec.h"
#include "fathom/model/cache_formats.h"
#include "fathom/model/config.h"
#include "fathom/model/state_pool.h"

namespace fathom {

/// Where everything lies in the pieces of a model's states. Offsets in bytes.
struct StateLayout {
  struct Layer {
    int64_t window = 0;
    int64_t compressor = 0, compressor_size = 0;  // floats; 0: none
    int64_t indexer_compressor = 0, indexer_compressor_size = 0;
    int64_t entries = -1, indexer_keys = -1;  // index into histories; -1: none
    int64_t entry_slot = 0, key_slot = 0;     // which of the history's layers this is
  };
  struct History {
    int64_t ratio = 0;
    EntryFormat format;
    int64_t num_layers = 0;
    int64_t entries_per_page = 0;
    size_t kind = 0;
    int64_t layer_bytes() const { return entries_per_page * format.num_bytes; }
  };
  static constexpr size_t kWindow = 0, kAccumulators = 1;

  /// @param page_size tokens a page covers; a multiple of every ratio > 0 of the model.
  /// @param with_mtp also for the MTP modules, and for the last token's streams
  /// @param precision that of the weights that will fill the states
  /// Errors: UserError when the page size does not fit.
  StateLayout(const ModelConfig& config, int64_t page_size, bool with_mtp,
              Precision precision = Precision::kFp32);

  Precision precision;
  int64_t page_size = 0;
  int64_t window_rows = 0;  // of one ring
  EntryFormat window_row;
  int64_t streams = 0, streams_size = 0;  // in the accumulators; floats, 0: not kept
  std::vector<Layer> layers;              // L + i is MTP module i
  std::vector<History> histories;
  std::vector<PieceKind> kinds;
  size_t replay_kind = 0;

  int64_t piece_bytes(size_t kind) const { return kinds[kind].num_bytes; }
  int64_t fixed_bytes() const { return piece_bytes(kWindow) + piece_bytes(kAccumulators); }
  /// Of all histories of one page of tokens.
  int64_t page_bytes() const;
  /// Of the pages of a sequence that has seen so many tokens.
  int64_t history_bytes(int64_t num_tokens) const;
};

/// A layout and the memory for it; what all states of an engine share. Pieces but replay_rows are
/// on the device.
struct StateSpace {
  StateSpace(const ModelConfig& config, int64_t page_size, bool with_mtp, int64_t budget_bytes,
             Precision precision = Precision::kFp32, Device* device = nullptr);
  StateLayout layout;
  StatePools pools;
  Device* device() const { return pools.device(); }
};

/// State of one layer. For the model's forward.
struct LayerState {
  std::span<uint8_t> window;            // [W] rows of layout.window_row, row = position mod W
  std::span<float> compressor;          // kernels/compressor streaming state, empty for ratio 0
  std::span<float> indexer_compressor;  // ratio 4
};

/// The part of fixed size at one length: a state's own, or a checkpoint.
struct StateBlock {
  Piece window, accumulators;
  explicit operator bool() const { return window != nullptr && accumulators != nullptr; }
  LayerState layer(const StateLayout& layout, int64_t i) const;
  /// The last token's streams before hc_head [M, D]; empty when the layout keeps none.
  std::span<float> streams(const StateLayout& layout) const;
};

// Empty when there is no memory.
StateBlock acquire_state_block(StateSpace& space);  // contents undefined
StateBlock make_state_block(StateSpace& space);     // cleared, as before the first token
void copy_state_block(const StateSpace& space, const StateBlock& from, const StateBlock& to);

/// A full page of tokens: one piece per history.
using HistoryPage = std::vector<Piece>;

class SequenceState {
 public:
  /// Before the first token, with memory of its own that is not limited.
  SequenceState(const ModelConfig& config, int64_t page_size,
                Precision precision = Precision::kFp32, Device* device = nullptr);
  /// A fork. Errors: InternalError when there is no memory; see fork().
  SequenceState(const SequenceState& other);
  SequenceState(SequenceState&&) = default;
  SequenceState& operator=(const SequenceState&) = delete;
  SequenceState& operator=(SequenceState&&) = default;

  // The same from a budget. @return null when there is no memory.
  static std::unique_ptr<SequenceState> create(std::shared_ptr<StateSpace> space);
  std::unique_ptr<SequenceState> fork() const;
  /// Behind a prefix of whole pages. @param block the checkpoint at its end; copied.
  static std::unique_ptr<SequenceState> resume(std::shared_ptr<StateSpace> space,
                                               const std::vector<const HistoryPage*>& pages,
                                               const StateBlock& block);

  StateSpace& space() const { return *space_; }
  const StateLayout& layout() const { return space_->layout; }
  int64_t num_tokens() const { return num_tokens_; }  // tokens seen: the next position
  int64_t num_bytes() const;                          // shared pages included

  /// Makes sure that the next num_tokens tokens find memory that is this state's alone. Without
  /// it memory is taken on the way. @return false when there is not enough.
  bool reserve(int64_t num_tokens);

  /// Forgets all tokens from num_tokens on. @param block the checkpoint at that length.
  void rewind(int64_t num_tokens, StateBlock block);

  const StateBlock& block() const { return block_; }
  /// The i-th page of tokens, which must be full.
  HistoryPage page(int64_t i) const;

  // For the model's forward.
  LayerState layer(int64_t i) const { return block_.layer(layout(), i); }
  // `count` entries more, that lie in rows first_row and on: adds to `runs` where they must be
  // stored. @return their format.
  const EntryFormat& append_entries(int64_t layer, int64_t first_row, int64_t count,
                                    std::vector<EntryRun>* runs);
  const EntryFormat& append_indexer_keys(int64_t layer, int64_t first_row, int64_t count,
                                         std::vector<EntryRun>* runs);
  int64_t num_entries(int64_t layer) const;
  /// Valid until the next append, reserve or copy.
  KeyPages entry_pages(int64_t layer) const;
  KeyPages indexer_key_pages(int64_t layer) const;
  void advance(int64_t num_tokens) { num_tokens_ += num_tokens; }

 private:
  struct History {
    std::vector<Piece> pages;
    std::vector<int64_t> sizes;                    // entries of each layer
    std::vector<std::vector<const void*>> tables;  // of each layer, one pointer a page
  };
  explicit SequenceState(std::shared_ptr<StateSpace> space);
  bool make_room(size_t history, int64_t first_entry, int64_t end_entry);
  void set_page(size_t history, size_t page, Piece piece);
  const EntryFormat& append(int64_t history, int64_t slot, int64_t first_row, int64_t count,
                            std::vector<EntryRun>* runs);
  KeyPages pages_of(int64_t history, int64_t slot) const;

  std::shared_ptr<StateSpace> space_;
  StateBlock block_;
  int64_t num_tokens_ = 0;
  std::vector<History> histories_;
};

}  // namespace fathom
