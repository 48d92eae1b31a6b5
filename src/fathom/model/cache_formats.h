// How a model's cached rows are stored in each mode (kernels/quant/entry_codec.h).
#pragma once

#include "fathom/base/precision.h"
#include "fathom/kernels/quant/entry_format.h"
#include "fathom/model/config.h"

namespace fathom {

struct CacheFormats {
  EntryFormat latent;       // window rows and compressed entries [hd]
  EntryFormat indexer_key;  // [index_head_dim]
};

/// fp32 rows, BF16 rows, or FP8 blocks: of latent rows all but the rotary channels, which stay
/// BF16; of indexer keys the whole row.
CacheFormats cache_formats(const ModelConfig& config, Precision precision);

}  // namespace fathom
