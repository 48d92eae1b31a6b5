// A build without CUDA.
#include "fathom/base/device.h"
#include "fathom/base/error.h"

namespace fathom {

bool has_cuda_build() { return false; }

std::unique_ptr<Device> open_cuda_device(const DeviceOptions&) {
  throw UserError(
      "--device cuda: this program was built without CUDA\n"
      "  fix: build it where the CUDA toolkit is installed (cmake -DFATHOM_CUDA=ON), or leave the "
      "option out");
}

}  // namespace fathom
