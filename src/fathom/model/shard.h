// Where the parameters of one model are cut (docs/numerics.md: a cut may change no bits of the
// forward). The same rules as those of parallel/shard_rules.h, as make_weights() needs them.
#pragma once

#include <cstdint>

#include "fathom/model/config.h"
#include "fathom/model/layout.h"

namespace fathom {

/// Chunks of the log-softmax over the vocabulary, those behind its end included.
int64_t num_vocabulary_chunks(int64_t vocab_size);
/// Whether embedding and head are cut over tp: by whole chunks.
bool cuts_vocabulary(const ModelConfig& config, const Layout& layout);
/// Rows of the embedding and of the head that member `index` of tp has; none where all of its
/// chunks lie behind the vocabulary.
RowRange vocabulary_rows(const ModelConfig& config, const Layout& layout, int index);

/// Whether a row-parallel product over `columns` can be computed by `degree` ranks: each owns whole
/// parts of it.
bool divides_parts(const Layout& layout, int64_t columns, int degree);
/// Whether wq_b is cut by heads: no block of FP8 rows may be cut.
bool cuts_queries(const ModelConfig& config, const Layout& layout);

/// Routed experts of this rank of ep.
RowRange local_experts(const ModelConfig& config, const Layout& layout);

/// Errors: ConfigError that names every number which does not divide.
void check_layout(const ModelConfig& config, const Layout& layout);

}  // namespace fathom
