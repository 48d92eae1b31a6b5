// The machines that plans are made for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace fathom {

/// Of one rank. Rates are nominal, in units per second.
struct Machine {
  std::string name;
  bool is_cpu = false;
  int64_t device_bytes = 0;   // memory that the rank computes in
  int64_t host_bytes = 0;     // its share of the node's memory; of a CPU the same memory, so 0
  int64_t process_bytes = 0;  // runtime, kernels and communication buffers, before any tensor
  double bf16_flops = 0, fp8_flops = 0;
  double node_bandwidth = 0;     // bytes to ranks of the same node
  double network_bandwidth = 0;  // bytes to ranks of other nodes
  double host_bandwidth = 0;     // bytes between device and host
};

/// H100, H200, B200, B300, GB200, GB300, CPU. The CPU's memory is this machine's, for one rank.
/// Nothing for another name.
std::optional<Machine> find_machine(const std::string& name);

}  // namespace fathom
