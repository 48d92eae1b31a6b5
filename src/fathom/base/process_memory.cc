#include "fathom/base/process_memory.h"

#include <algorithm>
#include <limits>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace fathom {

void keep_freed_memory(int64_t num_bytes) {
#ifdef __GLIBC__
  const int64_t most = std::numeric_limits<int>::max();
  mallopt(M_TRIM_THRESHOLD, static_cast<int>(std::min(num_bytes, most)));
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that it allows; above, pages come and go
#else
  (void)num_bytes;
#endif
}

void give_back_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace fathom
