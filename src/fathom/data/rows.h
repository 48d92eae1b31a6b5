// Rows of a data file as JSON objects, whatever the file's format.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "fathom/base/json.h"

namespace fathom {

/// Rows begin to end of a file; no end: to the last.
struct RowRange {
  int64_t begin = 0;
  std::optional<int64_t> end;
  bool contains(int64_t row) const { return row >= begin && (!end || row < *end); }
};

/// One row, not parsed yet where parsing can fail.
struct Row {
  std::string origin;           // "train.jsonl line 7", "train.parquet row 6"
  std::function<Json()> parse;  // Errors: UserError that begins with the origin
};

/// Calls `take` for every row of the range, in order. `.jsonl`: a JSON object a line, blank lines
/// are not rows. `.parquet`: columns become members; nested columns become lists and objects.
/// Errors: UserError for another suffix, and for a file that cannot be read.
void for_each_row(const std::string& path, const RowRange& range,
                  const std::function<void(const Row& row)>& take);

}  // namespace fathom
