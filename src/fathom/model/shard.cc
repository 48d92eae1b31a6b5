#include "fathom/model/shard.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/kernels/linear/linear.h"      // num_row_parallel_parts
#include "fathom/kernels/log_prob/log_prob.h"  // vocab_chunk_size

namespace fathom {

int64_t num_vocabulary_chunks(int64_t vocab_size) {
  return 8 * ((vocab_size + 8 * 3232 - 1) / (8 * 3232));
}

bool cuts_vocabulary(const ModelConfig& config, const Layout& layout) {
  const int tp = layout.tp.size();
  return tp > 1 && num_vocabulary_chunks(config.vocab_size) % tp == 0;
}

RowRange vocabulary_rows(const ModelConfig& config, const Layout& layout, int index) {
  const int64_t V = config.vocab_size;
  if (!cuts_vocabulary(config, layout)) return {0, V};
  const int64_t columns = num_vocabulary_chunks(V) / layout.tp.size() * vocab_chunk_size(V);
  const int64_t begin = std::min(V, columns * index);
  return {begin, std::min(V, columns * (index + 1)) - begin};
}

bool divides_parts(const Layout& layout, int64_t columns, int degree) {
  return num_row_parallel_parts(columns, layout.part_multiple) % degree == 0;
}

bool cuts_queries(const ModelConfig& config, const Layout& layout) {
  const int tp = layout.tp.size();
  const bool by_blocks = layout.part_multiple > 16;
  return tp > 1 && (!by_blocks || config.num_attention_heads / tp * config.head_dim % 128 == 0);
}

RowRange local_experts(const ModelConfig& config, const Layout& layout) {
  const int64_t n = config.n_routed_experts / layout.ep.size();
  return {n * layout.ep.rank(), n};
}

void check_layout(const ModelConfig& c, const Layout& layout) {
  std::string problems;
  const auto must_divide = [&](const char* option, int size, int64_t n, const char* what) {
    if (n % size == 0) return;
    problems += str_cat("\n  - ", option, " ", size, " does not divide the ", n, " ", what);
  };
  must_divide("--tensor-model-parallel-size", layout.tp.size(), c.num_attention_heads,
              "attention heads");
  must_divide("--tensor-model-parallel-size", layout.tp.size(), c.o_groups, "output groups");
  must_divide("--expert-model-parallel-size", layout.ep.size(), c.n_routed_experts,
              "routed experts");
  if (!problems.empty()) {
    throw ConfigError(str_cat("the layout does not fit the model:", problems,
                              "\n  fix: choose sizes that divide these numbers"));
  }
}

}  // namespace fathom
