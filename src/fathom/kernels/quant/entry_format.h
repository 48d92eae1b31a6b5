// How one cached row (a latent KV vector, an indexer key) lies in memory. Plain data: the kernels'
// per-instruction-set files read it.
#pragma once

#include <cstdint>

namespace fathom {

/// The least amax of an FP8 block of a row.
constexpr float kFp8RowAmaxFloor = 1e-4f;
/// Channels of an FP8 block of activations, of latent rows, and of indexer queries and keys.
constexpr int64_t kActivationFp8Block = 128, kLatentFp8Block = 64, kIndexerFp8Block = 128;

enum class EntryKind : uint8_t {
  kF32,   // width floats
  kBf16,  // width BF16 codes
  kFp8,   // fp8_channels E4M3 codes, the other channels as BF16 codes, one E8M0 scale for each
          // fp8_block channels (the last block may be short), zeros up to a multiple of 4 bytes
};

struct EntryFormat {
  EntryKind kind = EntryKind::kF32;
  int64_t width = 0;         // channels
  int64_t fp8_channels = 0;  // kFp8: the first channels
  int64_t fp8_block = 0;
  int64_t num_bytes = 0;  // of one entry
};

EntryFormat f32_entries(int64_t width);
EntryFormat bf16_entries(int64_t width);
EntryFormat fp8_entries(int64_t width, int64_t fp8_channels, int64_t fp8_block);

/// Entries of one sequence on pages: entry e is the (e % entries_per_page)-th of page
/// e / entries_per_page.
struct KeyPages {
  const void* const* pages = nullptr;
  int64_t entries_per_page = 1;
  EntryFormat format;
  int64_t num_pages = 0;  // in `pages`; kernels do not read it
};

}  // namespace fathom
