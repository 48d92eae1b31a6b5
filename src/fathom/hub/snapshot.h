// The files of one commit of a repository, on this machine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fathom/hub/repo.h"
#include "fathom/hub/settings.h"
#include "fathom/hub/transfer.h"

namespace fathom::hub {

struct SnapshotRequest {
  Repo repo;
  std::string revision = "main";              // branch, tag or commit
  std::vector<std::string> include, exclude;  // patterns (patterns.h); no include: all
  std::string local_dir;                      // empty: the shared cache
  bool force = false;                         // fetch what is there, too
  bool dry_run = false;                       // fetch and write nothing
};

struct SnapshotFile {
  RepoFile file;
  bool is_fetched = false;  // in a dry run: would be
};

struct Snapshot {
  std::string path;    // directory with the files
  std::string commit;  // empty: not known (offline, local_dir without notes)
  std::vector<SnapshotFile> files;
  int64_t num_fetched = 0, bytes_fetched = 0;
};

/// Idempotent and resumable. Offline, or when the Hub cannot be reached, what is there is returned
/// if it is complete.
/// @param report see Transfer::run; may be empty.
/// Errors: ConfigError for a wrong name; HubUnreachable, HubRefusal; UserError for a file name that
/// leaves its directory, too little space, content that is not what was promised, an incomplete
/// snapshot when offline (the missing files are named).
Snapshot download_snapshot(const HubSettings& settings, const SnapshotRequest& request,
                           const std::function<void(const TransferProgress&)>& report);

}  // namespace fathom::hub
