// A note that a local directory holds a whole download, so that a later run need not ask the Hub.
#pragma once

#include <string>

#include "fathom/hub/snapshot.h"

namespace fathom::hub {

/// Written last; removed before the first file changes. `<dir>/.cache/huggingface/fathom.json`.
void write_download_record(const SnapshotRequest& request, const std::string& commit);
void remove_download_record(const std::string& local_dir);

/// Whether request.local_dir holds everything that `request` asks for, as of some commit: the same
/// repository, revision and patterns, and every file with its size. Never asks the Hub.
/// @param edited files that need not have their size.
bool is_complete_download(const SnapshotRequest& request, const std::vector<std::string>& edited);

/// Whether a Hub client has put files here.
bool has_download_notes(const std::string& local_dir);

}  // namespace fathom::hub
