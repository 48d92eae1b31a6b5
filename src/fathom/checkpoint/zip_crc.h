// CRC-32 as zip, zlib and PNG define it.
#pragma once

#include <cstdint>

namespace fathom {

/// @param crc 0 first, then the last result to go on with the next bytes.
uint32_t crc32(uint32_t crc, const void* data, int64_t num_bytes);

/// The CRC of two pieces one after the other, from theirs and the length of the second.
uint32_t crc32_combine(uint32_t first, uint32_t second, int64_t second_bytes);

}  // namespace fathom
