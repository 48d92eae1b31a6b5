#include "fathom/base/device.h"

#include <cstring>

namespace fathom {

void copy_memory(Device* device, void* to, const void* from, size_t num_bytes) {
  if (num_bytes == 0) return;
  if (device != nullptr) return device->copy(to, from, num_bytes);
  std::memcpy(to, from, num_bytes);
}

void clear_memory(Device* device, void* to, size_t num_bytes) {
  if (num_bytes == 0) return;
  if (device != nullptr) return device->clear(to, num_bytes);
  std::memset(to, 0, num_bytes);
}

void upload_memory(Device* device, void* to, const void* from_host, size_t num_bytes) {
  if (num_bytes == 0) return;
  if (device != nullptr) return device->upload(to, from_host, num_bytes);
  std::memcpy(to, from_host, num_bytes);
}

void download_memory(Device* device, void* to_host, const void* from, size_t num_bytes) {
  if (num_bytes == 0) return;
  if (device != nullptr) return device->download(to_host, from, num_bytes);
  std::memcpy(to_host, from, num_bytes);
}

}  // namespace fathom
