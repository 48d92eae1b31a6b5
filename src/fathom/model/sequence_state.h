// What V4 remembers of one sequence between calls: a block of fixed size (window rings, compressor
// accumulators), which a copy duplicates, and append-only histories (compressed entries, indexer
// keys) in pages behind a block table, which a copy shares. A copy is a fork and a snapshot at
// once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fathom/kernels/sparse_attention/sparse_attention.h"  // KeyPages
#include "fathom/model/config.h"

namespace fathom {

/// Rows of `width` floats, appended only, in pages that copies share. The last, partly filled page
/// is copied by the first append after a fork.
class EntryHistory {
 public:
  EntryHistory(int64_t width, int64_t entries_per_page);
  int64_t size() const { return size_; }
  void append(const float* entries, int64_t count);  // [count, width]
  /// Valid until the next append or copy.
  KeyPages pages() const;
  int64_t num_bytes() const;  // of all pages, shared ones included

 private:
  int64_t width_, entries_per_page_, size_ = 0;
  std::vector<std::shared_ptr<float[]>> pages_;
  std::vector<const float*> table_;
};

class SequenceState {
 public:
  /// @param page_size tokens a page covers; a multiple of every ratio > 0 of the model.
  /// Errors: UserError when it is not.
  SequenceState(const ModelConfig& config, int64_t page_size);

  int64_t num_tokens() const { return num_tokens_; }  // tokens seen: the next position
  int64_t num_bytes() const;

  /// State of one layer (layer index L + i is MTP module i). For the model's forward.
  struct Layer {
    std::vector<float> window;              // [W, hd] ring, row = position mod W
    std::vector<float> compressor;          // kernels/compressor streaming state, empty for ratio 0
    std::vector<float> indexer_compressor;  // ratio 4
    std::vector<EntryHistory> entries;      // one or none: compressed latent KV [hd]
    std::vector<EntryHistory> indexer_keys;  // one or none: [index_head_dim]
  };
  Layer& layer(int64_t i) { return layers_[static_cast<size_t>(i)]; }
  const Layer& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }
  void advance(int64_t num_tokens) { num_tokens_ += num_tokens; }

 private:
  int64_t num_tokens_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace fathom
