// The directory that an export writes: locked, free of unfinished weights, not yet complete.
#pragma once

#include <memory>
#include <string>

#include "fathom/base/file.h"

namespace fathom {

class ExportDirectory {
 public:
  /// Errors: UserError when it holds a complete model or another process writes there.
  explicit ExportDirectory(std::string path);
  /// Everything is there: the lock's file goes too.
  void finish();

 private:
  std::string path_;
  std::unique_ptr<FileLock> lock_;
};

}  // namespace fathom
