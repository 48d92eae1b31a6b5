#include "fathom/model/sequence_state.h"

#include <algorithm>
#include <utility>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/kernels/compressor/compressor.h"

namespace fathom {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::span<float> floats(const Piece& piece, int64_t offset, int64_t count) {
  return {reinterpret_cast<float*>(piece.get() + offset), static_cast<size_t>(count)};
}

}  // namespace

StateLayout::StateLayout(const ModelConfig& c, int64_t tokens_per_page, bool with_mtp,
                         Precision mode)
    : precision(mode),
      page_size(tokens_per_page),
      window_rows(c.sliding_window),
      window_row(cache_formats(c, mode).latent) {
  const CacheFormats formats = cache_formats(c, mode);
  int64_t accumulator_bytes = 0;
  const auto take_floats = [&](int64_t count) {
    return std::exchange(accumulator_bytes, accumulator_bytes + count * kFloatBytes);
  };
  // Histories of the same ratio and use share their pages.
  const auto join_history = [&](int64_t ratio, const EntryFormat& format, int64_t index) {
    if (index < 0) {
      index = static_cast<int64_t>(histories.size());
      histories.push_back(
          {.ratio = ratio, .format = format, .entries_per_page = page_size / ratio});
    }
    ++histories[static_cast<size_t>(index)].num_layers;
    return index;
  };
  const int64_t num_layers = c.num_hidden_layers + (with_mtp ? c.num_nextn_predict_layers : 0);
  int64_t key_history = -1;
  std::vector<std::pair<int64_t, int64_t>> entry_history;  // of each ratio
  for (int64_t i = 0; i < num_layers; ++i) {
    const int64_t ratio = i < c.num_hidden_layers ? c.ratio(i) : 0;
    Layer layer;
    layer.window = i * window_rows * window_row.num_bytes;
    if (ratio > 0) {
      FATHOM_CHECK(page_size >= ratio && page_size % ratio == 0, "page size ", page_size,
                   " is not a multiple of the compress ratio ", ratio, " of layer ", i,
                   "\n  fix: use a multiple of every ratio, for example ", 2 * ratio);
      const int64_t coff = compressor_coff(ratio);
      layer.compressor_size = compressor_state_size(coff, c.head_dim);
      layer.compressor = take_floats(layer.compressor_size);
      auto known = std::find_if(entry_history.begin(), entry_history.end(),
                                [&](const auto& e) { return e.first == ratio; });
      layer.entries =
          join_history(ratio, formats.latent, known == entry_history.end() ? -1 : known->second);
      if (known == entry_history.end()) entry_history.emplace_back(ratio, layer.entries);
      layer.entry_slot = histories[static_cast<size_t>(layer.entries)].num_layers - 1;
      if (ratio == 4) {
        layer.indexer_compressor_size = compressor_state_size(coff, c.index_head_dim);
        layer.indexer_compressor = take_floats(layer.indexer_compressor_size);
        key_history = join_history(ratio, formats.indexer_key, key_history);
        layer.indexer_keys = key_history;
        layer.key_slot = histories[static_cast<size_t>(key_history)].num_layers - 1;
      }
    }
    layers.push_back(layer);
  }
  if (with_mtp && c.num_nextn_predict_layers > 0) {
    streams_size = c.hc_mult * c.hidden_size;
    streams = take_floats(streams_size);
  }
  kinds.push_back({"window", num_layers * window_rows * window_row.num_bytes});
  kinds.push_back({"accumulators", accumulator_bytes});
  for (size_t h = 0; h < histories.size(); ++h) {
    History& history = histories[h];
    history.kind = kinds.size();
    kinds.push_back({static_cast<int64_t>(h) == key_history
                         ? std::string("indexer_keys")
                         : str_cat("ratio_", history.ratio, "_entries"),
                     history.num_layers * history.layer_bytes()});
  }
  replay_kind = kinds.size();
  kinds.push_back(
      {"replay_rows",
       page_size *
           (c.num_hidden_layers * c.num_experts_per_tok + c.num_indexer_layers() * c.index_topk) *
           static_cast<int64_t>(sizeof(int32_t)),
       /*is_on_host=*/true});
}

int64_t StateLayout::page_bytes() const { return history_bytes(page_size); }

int64_t StateLayout::history_bytes(int64_t num_tokens) const {
  int64_t total = 0;
  for (const History& h : histories) {
    total += divide_up(num_tokens / h.ratio, h.entries_per_page) * piece_bytes(h.kind);
  }
  return total;
}

StateSpace::StateSpace(const ModelConfig& config, int64_t page_size, bool with_mtp,
                       int64_t budget_bytes, Precision precision, Device* device)
    : layout(config, page_size, with_mtp, precision), pools(layout.kinds, budget_bytes, device) {}

LayerState StateBlock::layer(const StateLayout& layout, int64_t i) const {
  const StateLayout::Layer& l = layout.layers[static_cast<size_t>(i)];
  return {{window.get() + l.window,
           static_cast<size_t>(layout.window_rows * layout.window_row.num_bytes)},
          floats(accumulators, l.compressor, l.compressor_size),
          floats(accumulators, l.indexer_compressor, l.indexer_compressor_size)};
}

std::span<float> StateBlock::streams(const StateLayout& layout) const {
  return floats(accumulators, layout.streams, layout.streams_size);
}

StateBlock acquire_state_block(StateSpace& space) {
  StateBlock block{space.pools.acquire(StateLayout::kWindow),
                   space.pools.acquire(StateLayout::kAccumulators)};
  return block ? block : StateBlock{};
}

StateBlock make_state_block(StateSpace& space) {
  const StateLayout& layout = space.layout;
  const StateBlock block = acquire_state_block(space);
  if (!block) return block;
  clear_memory(space.device(), block.window.get(),
               static_cast<size_t>(layout.piece_bytes(StateLayout::kWindow)));
  std::vector<float> accumulators(
      static_cast<size_t>(layout.piece_bytes(StateLayout::kAccumulators) / kFloatBytes), 0.0f);
  for (const StateLayout::Layer& l : layout.layers) {
    if (l.entries < 0) continue;
    const StateLayout::History& entries = layout.histories[static_cast<size_t>(l.entries)];
    const int64_t coff = compressor_coff(entries.ratio);
    compressor_state_clear(accumulators.data() + l.compressor / kFloatBytes, coff,
                           entries.format.width);
    if (l.indexer_keys < 0) continue;
    compressor_state_clear(accumulators.data() + l.indexer_compressor / kFloatBytes, coff,
                           layout.histories[static_cast<size_t>(l.indexer_keys)].format.width);
  }
  upload_memory(space.device(), block.accumulators.get(), accumulators.data(),
                accumulators.size() * sizeof(float));
  return block;
}

void copy_state_block(const StateSpace& space, const StateBlock& from, const StateBlock& to) {
  copy_memory(space.device(), to.window.get(), from.window.get(),
              static_cast<size_t>(space.layout.piece_bytes(StateLayout::kWindow)));
  copy_memory(space.device(), to.accumulators.get(), from.accumulators.get(),
              static_cast<size_t>(space.layout.piece_bytes(StateLayout::kAccumulators)));
}

SequenceState::SequenceState(std::shared_ptr<StateSpace> space) : space_(std::move(space)) {
  for (const StateLayout::History& h : layout().histories) {
    const size_t n = static_cast<size_t>(h.num_layers);
    histories_.push_back(
        {{}, std::vector<int64_t>(n, 0), std::vector<std::vector<const void*>>(n)});
  }
}

SequenceState::SequenceState(const ModelConfig& config, int64_t page_size, Precision precision,
                             Device* device)
    : SequenceState(std::make_shared<StateSpace>(config, page_size, /*with_mtp=*/true,
                                                 /*budget_bytes=*/0, precision, device)) {
  block_ = make_state_block(*space_);
}

SequenceState::SequenceState(const SequenceState& other)
    : space_(other.space_),
      block_(acquire_state_block(*other.space_)),
      num_tokens_(other.num_tokens_),
      histories_(other.histories_) {
  FATHOM_ASSERT(block_, "no memory for a copy of a state");
  copy_state_block(*space_, other.block_, block_);
}

std::unique_ptr<SequenceState> SequenceState::create(std::shared_ptr<StateSpace> space) {
  std::unique_ptr<SequenceState> state(new SequenceState(std::move(space)));
  state->block_ = make_state_block(*state->space_);
  return state->block_ ? std::move(state) : nullptr;
}

std::unique_ptr<SequenceState> SequenceState::fork() const {
  std::unique_ptr<SequenceState> state(new SequenceState(space_));
  state->block_ = acquire_state_block(*space_);
  if (!state->block_) return nullptr;
  copy_state_block(*space_, block_, state->block_);
  state->num_tokens_ = num_tokens_;
  state->histories_ = histories_;
  return state;
}

std::unique_ptr<SequenceState> SequenceState::resume(std::shared_ptr<StateSpace> space,
                                                     const std::vector<const HistoryPage*>& pages,
                                                     const StateBlock& block) {
  std::unique_ptr<SequenceState> state(new SequenceState(std::move(space)));
  state->block_ = acquire_state_block(*state->space_);
  if (!state->block_) return nullptr;
  copy_state_block(*state->space_, block, state->block_);
  state->num_tokens_ = static_cast<int64_t>(pages.size()) * state->layout().page_size;
  for (size_t h = 0; h < state->histories_.size(); ++h) {
    for (size_t i = 0; i < pages.size(); ++i) state->set_page(h, i, (*pages[i])[h]);
    for (int64_t& size : state->histories_[h].sizes) {
      size = state->num_tokens_ / state->layout().histories[h].ratio;
    }
  }
  return state;
}

int64_t SequenceState::num_bytes() const {
  int64_t total = layout().fixed_bytes();
  for (size_t h = 0; h < histories_.size(); ++h) {
    total += static_cast<int64_t>(histories_[h].pages.size()) *
             layout().piece_bytes(layout().histories[h].kind);
  }
  return total;
}

bool SequenceState::reserve(int64_t num_tokens) {
  for (size_t h = 0; h < histories_.size(); ++h) {
    const int64_t ratio = layout().histories[h].ratio;
    if (!make_room(h, num_tokens_ / ratio, (num_tokens_ + num_tokens) / ratio)) return false;
  }
  return true;
}

void SequenceState::rewind(int64_t num_tokens, StateBlock block) {
  FATHOM_ASSERT(num_tokens <= num_tokens_ && block, "rewind from ", num_tokens_, " to ",
                num_tokens);
  num_tokens_ = num_tokens;
  block_ = std::move(block);
  for (size_t h = 0; h < histories_.size(); ++h) {
    History& history = histories_[h];
    const StateLayout::History& l = layout().histories[h];
    const int64_t size = num_tokens / l.ratio;
    const size_t num_pages = static_cast<size_t>(divide_up(size, l.entries_per_page));
    std::fill(history.sizes.begin(), history.sizes.end(), size);
    history.pages.resize(num_pages);
    for (auto& table : history.tables) table.resize(num_pages);
  }
}

HistoryPage SequenceState::page(int64_t i) const {
  FATHOM_ASSERT((i + 1) * layout().page_size <= num_tokens_, "page ", i, " of ", num_tokens_,
                " tokens is not full");
  HistoryPage page;
  for (const History& history : histories_) page.push_back(history.pages[static_cast<size_t>(i)]);
  return page;
}

const EntryFormat& SequenceState::append_entries(int64_t layer, int64_t first_row, int64_t count,
                                                 std::vector<EntryRun>* runs) {
  const StateLayout::Layer& l = layout().layers[static_cast<size_t>(layer)];
  return append(l.entries, l.entry_slot, first_row, count, runs);
}

const EntryFormat& SequenceState::append_indexer_keys(int64_t layer, int64_t first_row,
                                                      int64_t count, std::vector<EntryRun>* runs) {
  const StateLayout::Layer& l = layout().layers[static_cast<size_t>(layer)];
  return append(l.indexer_keys, l.key_slot, first_row, count, runs);
}

int64_t SequenceState::num_entries(int64_t layer) const {
  const StateLayout::Layer& l = layout().layers[static_cast<size_t>(layer)];
  return histories_[static_cast<size_t>(l.entries)].sizes[static_cast<size_t>(l.entry_slot)];
}

KeyPages SequenceState::entry_pages(int64_t layer) const {
  const StateLayout::Layer& l = layout().layers[static_cast<size_t>(layer)];
  return pages_of(l.entries, l.entry_slot);
}

KeyPages SequenceState::indexer_key_pages(int64_t layer) const {
  const StateLayout::Layer& l = layout().layers[static_cast<size_t>(layer)];
  return pages_of(l.indexer_keys, l.key_slot);
}

/// Memory of our own for entries [first_entry, end_entry).
bool SequenceState::make_room(size_t h, int64_t first_entry, int64_t end_entry) {
  if (first_entry == end_entry) return true;
  History& history = histories_[h];
  const StateLayout::History& l = layout().histories[h];
  const size_t first_page = static_cast<size_t>(first_entry / l.entries_per_page);
  // Others may share a partly filled page: it is ours from here on.
  if (first_page < history.pages.size() && history.pages[first_page].use_count() > 1) {
    Piece copy = space_->pools.acquire(l.kind);
    if (copy == nullptr) return false;
    copy_memory(space_->device(), copy.get(), history.pages[first_page].get(),
                static_cast<size_t>(layout().piece_bytes(l.kind)));
    set_page(h, first_page, std::move(copy));
  }
  const size_t num_pages = static_cast<size_t>(divide_up(end_entry, l.entries_per_page));
  while (history.pages.size() < num_pages) {
    Piece piece = space_->pools.acquire(l.kind);
    if (piece == nullptr) return false;
    set_page(h, history.pages.size(), std::move(piece));
  }
  return true;
}

void SequenceState::set_page(size_t h, size_t page, Piece piece) {
  History& history = histories_[h];
  const int64_t layer_bytes = layout().histories[h].layer_bytes();
  if (page == history.pages.size()) {
    history.pages.emplace_back();
    for (auto& table : history.tables) table.push_back(nullptr);
  }
  for (size_t slot = 0; slot < history.tables.size(); ++slot) {
    history.tables[slot][page] = piece.get() + static_cast<int64_t>(slot) * layer_bytes;
  }
  history.pages[page] = std::move(piece);
}

const EntryFormat& SequenceState::append(int64_t h, int64_t slot, int64_t first_row, int64_t count,
                                         std::vector<EntryRun>* runs) {
  History& history = histories_[static_cast<size_t>(h)];
  const StateLayout::History& l = layout().histories[static_cast<size_t>(h)];
  int64_t& size = history.sizes[static_cast<size_t>(slot)];
  FATHOM_ASSERT(make_room(static_cast<size_t>(h), size, size + count),
                "no memory for the state of ", num_tokens_, " tokens");
  while (count > 0) {
    const int64_t used = size % l.entries_per_page;
    const int64_t n = std::min(count, l.entries_per_page - used);
    uint8_t* page = history.pages[static_cast<size_t>(size / l.entries_per_page)].get();
    runs->push_back({first_row, n, page + slot * l.layer_bytes() + used * l.format.num_bytes});
    first_row += n;
    count -= n;
    size += n;
  }
  return l.format;
}

KeyPages SequenceState::pages_of(int64_t h, int64_t slot) const {
  const std::vector<const void*>& table =
      histories_[static_cast<size_t>(h)].tables[static_cast<size_t>(slot)];
  return {table.data(), layout().histories[static_cast<size_t>(h)].entries_per_page,
          layout().histories[static_cast<size_t>(h)].format, static_cast<int64_t>(table.size())};
}

}  // namespace fathom
