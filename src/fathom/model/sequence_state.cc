#include "fathom/model/sequence_state.h"

#include <algorithm>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/kernels/compressor/compressor.h"

namespace fathom {

EntryHistory::EntryHistory(int64_t width, int64_t entries_per_page)
    : width_(width), entries_per_page_(entries_per_page) {}

void EntryHistory::append(const float* entries, int64_t count) {
  while (count > 0) {
    const int64_t used = size_ % entries_per_page_;
    if (used == 0) {
      pages_.push_back(std::make_shared<float[]>(static_cast<size_t>(entries_per_page_ * width_)));
      table_.push_back(pages_.back().get());
    } else if (pages_.back().use_count() > 1) {
      // Shared with a fork: the partly filled page is ours from here on.
      auto copy = std::make_shared<float[]>(static_cast<size_t>(entries_per_page_ * width_));
      std::memcpy(copy.get(), pages_.back().get(),
                  static_cast<size_t>(used * width_) * sizeof(float));
      pages_.back() = std::move(copy);
      table_.back() = pages_.back().get();
    }
    const int64_t n = std::min(count, entries_per_page_ - used);
    std::memcpy(pages_.back().get() + used * width_, entries,
                static_cast<size_t>(n * width_) * sizeof(float));
    entries += n * width_;
    count -= n;
    size_ += n;
  }
}

KeyPages EntryHistory::pages() const { return {table_.data(), entries_per_page_}; }

int64_t EntryHistory::num_bytes() const {
  return static_cast<int64_t>(pages_.size()) * entries_per_page_ * width_ *
         static_cast<int64_t>(sizeof(float));
}

SequenceState::SequenceState(const ModelConfig& config, int64_t page_size) {
  const int64_t num_layers = config.num_hidden_layers + config.num_nextn_predict_layers;
  for (int64_t i = 0; i < num_layers; ++i) {
    const int64_t ratio = i < config.num_hidden_layers ? config.ratio(i) : 0;
    Layer layer;
    layer.window.resize(static_cast<size_t>(config.sliding_window * config.head_dim));
    if (ratio > 0) {
      FATHOM_CHECK(page_size % ratio == 0, "page size ", page_size,
                   " is not a multiple of the compress ratio ", ratio, " of layer ", i,
                   "\n  fix: use a multiple of every ratio, for example ", 2 * ratio);
      const int64_t coff = compressor_coff(ratio);
      layer.compressor.resize(static_cast<size_t>(compressor_state_size(coff, config.head_dim)));
      compressor_state_clear(layer.compressor.data(), coff, config.head_dim);
      layer.entries.emplace_back(config.head_dim, page_size / ratio);
      if (ratio == 4) {
        const int64_t width = config.index_head_dim;
        layer.indexer_compressor.resize(static_cast<size_t>(compressor_state_size(coff, width)));
        compressor_state_clear(layer.indexer_compressor.data(), coff, width);
        layer.indexer_keys.emplace_back(width, page_size / ratio);
      }
    }
    layers_.push_back(std::move(layer));
  }
}

int64_t SequenceState::num_bytes() const {
  int64_t total = 0;
  for (const Layer& l : layers_) {
    total += static_cast<int64_t>(
        (l.window.size() + l.compressor.size() + l.indexer_compressor.size()) * sizeof(float));
    for (const auto& h : l.entries) total += h.num_bytes();
    for (const auto& h : l.indexer_keys) total += h.num_bytes();
  }
  return total;
}

}  // namespace fathom
