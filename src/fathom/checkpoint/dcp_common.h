// The small files beside the tensors: metadata.json, common.pt and the tracker.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fathom/base/json.h"

namespace fathom {

/// metadata.json: says that the directory is a whole torch_dist checkpoint. Exactly these four
/// keys: some readers refuse others.
std::string metadata_json_text();
/// Errors: UserError when `directory` has no metadata.json or one of another kind.
void check_metadata_json(const std::string& directory);

/// common.pt as torch.save writes it to a file of that name.
/// @param args scalars, strings and lists under Megatron's option names; stored as an
/// argparse.Namespace, as readers expect.
/// @param iteration of the checkpoint.
/// @param with_optimizer says in content_metadata that the optimizer's state is stored in the
/// resharding-free form (`optimizer.state.*` keys in the shape of the model's tensors).
std::string encode_common_pt(const Json& args, int64_t iteration, bool with_optimizer);
/// As plain data: {"args": {...}, "iteration": ..., ...}. Python objects without a counterpart are
/// strings "<module name>". Errors: UserError for a damaged or hostile file.
Json decode_common_pt(std::string_view bytes, const std::string& origin);

/// `<save>/latest_checkpointed_iteration.txt`.
std::string tracker_path(const std::string& save_dir);
/// "release", or an iteration's number, with white space removed. Null: no tracker.
/// Errors: UserError for any other content.
std::optional<std::string> read_tracker(const std::string& save_dir);
/// "release" -> "release", "20" -> "iter_0000020".
std::string checkpoint_name(const std::string& tracker);
std::string iteration_name(int64_t iteration);  // "iter_0000020"
/// The iteration of such a name; null for others.
std::optional<int64_t> parse_iteration_name(std::string_view name);

/// The directory to read for `path`: `path` itself when it is a checkpoint (it has metadata.json),
/// else the one that its tracker names.
/// Errors: UserError that says what was looked for.
std::string resolve_checkpoint(const std::string& path);

}  // namespace fathom
