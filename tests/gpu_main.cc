// main() of tests of the model on a CUDA device. Exits with 77 (skipped) where there is none.
#include <gtest/gtest.h>

#include <cstdio>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/kernels/kernel_test.h"

namespace {

std::unique_ptr<fathom::Device> device;

}  // namespace

fathom::Device* fathom::test_device() { return device.get(); }

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    device = fathom::open_cuda_device();
  } catch (const fathom::UserError& e) {
    std::printf("skipped: %s\n", e.what());
    return 77;
  }
  std::printf("on %s\n", device->name().c_str());
  return RUN_ALL_TESTS();
}
