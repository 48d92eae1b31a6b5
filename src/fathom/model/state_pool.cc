#include "fathom/model/state_pool.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <new>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/base/process_memory.h"

namespace fathom {
namespace {

constexpr std::align_val_t kAlignment{64};

}  // namespace

struct StatePools::State {
  struct Pool {
    PieceKind kind;
    int64_t num_used = 0;
    std::vector<uint8_t*> free;
  };
  std::vector<Pool> pools;
  Device* device = nullptr;
  int64_t budget = 0, used = 0, kept = 0, peak_used = 0;

  ~State() { trim(); }

  void drop_free_piece(Pool* pool) {
    if (device != nullptr && !pool->kind.is_on_host) {
      device->release(pool->free.back());
    } else {
      ::operator delete[](pool->free.back(), kAlignment);
    }
    pool->free.pop_back();
    kept -= pool->kind.num_bytes;
  }

  void trim() {
    for (Pool& pool : pools) {
      while (!pool.free.empty()) drop_free_piece(&pool);
      pool.free.shrink_to_fit();
    }
  }

  uint8_t* take(size_t index) {
    Pool& pool = pools[index];
    const int64_t size = pool.kind.num_bytes;
    if (budget > 0 && used + size > budget) return nullptr;
    uint8_t* piece = nullptr;
    if (!pool.free.empty()) {
      piece = pool.free.back();
      pool.free.pop_back();
    } else {
      // Free pieces of other kinds make way.
      for (Pool& other : pools) {
        while (budget > 0 && kept + size > budget && !other.free.empty()) drop_free_piece(&other);
      }
      piece = static_cast<uint8_t*>(device != nullptr && !pool.kind.is_on_host
                                        ? device->allocate(static_cast<size_t>(size))
                                        : ::operator new[](static_cast<size_t>(size), kAlignment));
      kept += size;
    }
    ++pool.num_used;
    used += size;
    peak_used = std::max(peak_used, used);
    return piece;
  }

  void give_back(size_t index, uint8_t* piece) {
    Pool& pool = pools[index];
    pool.free.push_back(piece);
    --pool.num_used;
    used -= pool.kind.num_bytes;
  }
};

StatePools::StatePools(std::vector<PieceKind> kinds, int64_t budget_bytes, Device* device)
    : state_(std::make_shared<State>()) {
  FATHOM_ASSERT(budget_bytes >= 0, "budget of ", budget_bytes, " bytes");
  for (PieceKind& kind : kinds) {
    FATHOM_ASSERT(kind.num_bytes >= 0, "pieces of ", kind.num_bytes, " bytes");
    state_->pools.push_back({.kind = std::move(kind)});
  }
  state_->budget = budget_bytes;
  state_->device = device;
}

Piece StatePools::acquire(size_t kind) {
  uint8_t* piece = state_->take(kind);
  if (piece == nullptr) return nullptr;
  // The pointer keeps the pools' memory alive, so states may outlive the engine that made them.
  return Piece(piece, [state = state_, kind](uint8_t* p) { state->give_back(kind, p); });
}

Device* StatePools::device() const { return state_->device; }
int64_t StatePools::budget_bytes() const { return state_->budget; }
int64_t StatePools::used_bytes() const { return state_->used; }
int64_t StatePools::kept_bytes() const { return state_->kept; }
int64_t StatePools::peak_used_bytes() const { return state_->peak_used; }

bool StatePools::fits(int64_t num_bytes) const {
  return state_->budget == 0 || state_->used + num_bytes <= state_->budget;
}

std::vector<PoolUsage> StatePools::usage() const {
  std::vector<PoolUsage> all;
  for (const State::Pool& pool : state_->pools) {
    all.push_back({pool.kind.name, pool.kind.num_bytes, pool.num_used,
                   static_cast<int64_t>(pool.free.size())});
  }
  return all;
}

void StatePools::trim() {
  state_->trim();
  give_back_freed_memory();  // small pieces come from the heap, which keeps what is freed
}

int64_t resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  long size = 0, resident = 0;
  const int read = std::fscanf(file, "%ld %ld", &size, &resident);
  std::fclose(file);
  return read == 2 ? static_cast<int64_t>(resident) * sysconf(_SC_PAGESIZE) : 0;
}

int64_t available_memory_bytes() {
  int64_t available = 0;
  if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
    char line[128];
    long kilobytes = 0;
    while (std::fgets(line, sizeof line, file) != nullptr) {
      if (std::sscanf(line, "MemAvailable: %ld kB", &kilobytes) == 1) available = kilobytes * 1024;
    }
    std::fclose(file);
  }
  const auto read_number = [](const char* path, long* value) {
    std::FILE* file = std::fopen(path, "r");
    if (file == nullptr) return false;
    const int read = std::fscanf(file, "%ld", value);  // "max" is no number: no limit
    std::fclose(file);
    return read == 1;
  };
  long limit = 0, used = 0;
  if (read_number("/sys/fs/cgroup/memory.max", &limit) &&
      read_number("/sys/fs/cgroup/memory.current", &used)) {
    available = std::min<int64_t>(available, std::max<long>(0, limit - used));
  }
  return available;
}

}  // namespace fathom
