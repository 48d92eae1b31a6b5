// How this process deals with the memory that it has freed. For main().
#pragma once

#include <cstdint>

namespace fathom {

/// Lets the C library keep up to so many freed bytes for the next who asks, where it has such a
/// setting. Every step of the engine frees tens of megabytes and takes them again; giving them to
/// the system in between costs a page fault per 4 KiB, a tenth of the time of decoding.
/// give_back_freed_memory() still gives back everything.
void keep_freed_memory(int64_t num_bytes = int64_t{256} << 20);

/// Gives what is kept back to the system, where the C library can.
void give_back_freed_memory();

}  // namespace fathom
