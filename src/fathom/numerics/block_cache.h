// Memory for tensors: freed blocks are kept per thread and given to the next tensor of that size.
// A step of decoding makes hundreds of small tensors, all of the same few sizes as in the step
// before; the C library, which has to merge and split aligned blocks, took a quarter of its time.
#pragma once

#include <cstddef>
#include <memory>

namespace fathom {

/// At least num_bytes, 64-byte aligned, contents undefined. May be freed on any thread.
/// Blocks of up to 1 MiB come from and go to the thread's cache, which keeps up to 32 MiB; larger
/// ones come from the C library. Under AddressSanitizer nothing is kept, so that it sees every use
/// after free.
/// Errors: std::bad_alloc.
std::shared_ptr<void> acquire_block(size_t num_bytes);

}  // namespace fathom
