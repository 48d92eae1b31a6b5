#include "fathom/plan/hardware.h"

#include <unistd.h>

namespace fathom {
namespace {

constexpr int64_t kGiga = 1'000'000'000;
// Context, kernels and NCCL's buffers of one process.
constexpr int64_t kGpuProcess = 3 * kGiga;
// Program, libraries, thread stacks and tokenizer, as measured.
constexpr int64_t kCpuProcess = 12'000'000;

Machine gpu(const char* name, int64_t device, int64_t host, double bf16, double fp8,
            double node_bandwidth, double host_bandwidth) {
  return {.name = name,
          .device_bytes = device * kGiga,
          .host_bytes = host * kGiga,
          .process_bytes = kGpuProcess,
          .bf16_flops = bf16,
          .fp8_flops = fp8,
          .node_bandwidth = node_bandwidth,
          .network_bandwidth = 50e9,
          .host_bandwidth = host_bandwidth};
}

int64_t this_machines_memory() {
  const long pages = ::sysconf(_SC_PHYS_PAGES), size = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? static_cast<int64_t>(pages) * size : 0;
}

}  // namespace

std::optional<Machine> find_machine(const std::string& name) {
  // Eight GPUs beside 2 TB for the x86 nodes, four beside 960 GB for the Grace nodes.
  if (name == "H100") return gpu("H100", 80, 250, 989e12, 1979e12, 450e9, 55e9);
  if (name == "H200") return gpu("H200", 141, 250, 989e12, 1979e12, 450e9, 55e9);
  if (name == "B200") return gpu("B200", 180, 250, 2250e12, 4500e12, 900e9, 55e9);
  if (name == "B300") return gpu("B300", 270, 250, 2250e12, 4500e12, 900e9, 110e9);
  if (name == "GB200") return gpu("GB200", 186, 240, 2500e12, 5000e12, 900e9, 200e9);
  if (name == "GB300") return gpu("GB300", 279, 240, 2500e12, 5000e12, 900e9, 200e9);
  if (name == "CPU") {
    Machine m;
    m.name = "CPU";
    m.is_cpu = true;
    m.device_bytes = this_machines_memory();
    m.process_bytes = kCpuProcess;
    m.bf16_flops = m.fp8_flops = 100e9;
    m.node_bandwidth = m.network_bandwidth = m.host_bandwidth = 1e9;
    return m;
  }
  return std::nullopt;
}

}  // namespace fathom
