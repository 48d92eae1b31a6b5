#include "fathom/data/rows.h"

#include <algorithm>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/data/parquet_rows.h"

namespace fathom {
namespace {

void for_each_line(const std::string& path, const RowRange& range,
                   const std::function<void(const Row& row)>& take) {
  const std::string text = read_file(path);
  int64_t line_number = 0, row_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (!range.contains(row_number++)) continue;
    const std::string origin = str_cat(path, " line ", line_number);
    take({origin, [&] { return parse_json(line, origin); }});
  }
}

}  // namespace

void for_each_row(const std::string& path, const RowRange& range,
                  const std::function<void(const Row& row)>& take) {
  if (path.ends_with(".jsonl")) return for_each_line(path, range, take);
  if (path.ends_with(".parquet")) return for_each_parquet_row(path, range, take);
  throw UserError(str_cat("data file ", path, ": .jsonl and .parquet files are read",
                          "\n  fix: convert it, one JSON object a line"));
}

}  // namespace fathom
