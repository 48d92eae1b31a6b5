// Memory for sequence states: pieces of a few fixed sizes under one budget of bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fathom/base/device.h"

namespace fathom {

/// Memory of one kind, shared by whoever copies the pointer. The last one to let go gives it back
/// to its pool, which may be gone by then.
using Piece = std::shared_ptr<uint8_t[]>;

struct PieceKind {
  std::string name;
  int64_t num_bytes = 0;    // of one piece
  bool is_on_host = false;  // whatever the device
};

struct PoolUsage {
  std::string name;
  int64_t piece_bytes = 0;
  int64_t num_used = 0;  // pieces that somebody holds
  int64_t num_free = 0;  // pieces kept for the next who asks
  int64_t used_bytes() const { return piece_bytes * num_used; }
};

/// One pool per kind. Bytes are counted exactly: what is used and what is kept free never exceed
/// the budget together, and a piece is refused only when it does not fit beside what is used.
/// For one thread.
class StatePools {
 public:
  /// @param budget_bytes 0: no limit.
  /// @param device whose memory the pieces are of; null: of the host
  StatePools(std::vector<PieceKind> kinds, int64_t budget_bytes, Device* device = nullptr);

  /// 64-byte aligned, contents undefined. @return null when the budget is used up.
  Piece acquire(size_t kind);

  Device* device() const;
  int64_t budget_bytes() const;  // 0: no limit
  int64_t used_bytes() const;
  int64_t kept_bytes() const;  // used and free
  int64_t peak_used_bytes() const;
  /// Whether so many bytes more could be used.
  bool fits(int64_t num_bytes) const;
  std::vector<PoolUsage> usage() const;

  /// Gives all free pieces back to the system.
  void trim();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Bytes; 0 where the system does not say.
int64_t resident_bytes();  // of this process
int64_t
available_memory_bytes();  // that could still be taken, of the machine and the control group

}  // namespace fathom
