#include "fathom/model/cache_formats.h"

#include "fathom/base/error.h"

namespace fathom {

CacheFormats cache_formats(const ModelConfig& c, Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return {f32_entries(c.head_dim), f32_entries(c.index_head_dim)};
    case Precision::kParityBf16:
      return {bf16_entries(c.head_dim), bf16_entries(c.index_head_dim)};
    case Precision::kParityFp8:
      return {fp8_entries(c.head_dim, c.head_dim - c.qk_rope_head_dim, kLatentFp8Block),
              fp8_entries(c.index_head_dim, c.index_head_dim, kIndexerFp8Block)};
  }
  FATHOM_ASSERT(false, "unknown precision");
}

}  // namespace fathom
