// Parquet files through Arrow's C++ library, where the build has it.
#pragma once

#include <functional>
#include <string>

#include "fathom/data/rows.h"

namespace fathom {

/// Whether this build reads parquet.
bool has_parquet();

/// As for_each_row. Row groups outside of the range are not read; one batch of rows is in memory at
/// a time. null, booleans, numbers, strings, lists, structs, maps (lists of {key, value}),
/// dictionaries, dates and times (ISO text) and decimals (text) have a counterpart in JSON.
/// Errors: UserError naming file, row and column: a damaged file, a type without a counterpart,
/// text that is not UTF-8; in a build without Arrow, that.
void for_each_parquet_row(const std::string& path, const RowRange& range,
                          const std::function<void(const Row& row)>& take);

}  // namespace fathom
