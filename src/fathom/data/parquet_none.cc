// What parquet_rows.h says in a build without Arrow.
#include "fathom/base/error.h"
#include "fathom/data/parquet_rows.h"

namespace fathom {

bool has_parquet() { return false; }

void for_each_parquet_row(const std::string& path, const RowRange&,
                          const std::function<void(const Row& row)>&) {
  throw UserError(
      str_cat("data file ", path, ": this build reads no parquet, it was made without ",
              "Arrow\n  fix: `make setup` again and build anew, or convert the file to ",
              ".jsonl, one JSON object a line"));
}

}  // namespace fathom
