#include "fathom/checkpoint/dcp_common.h"

#include <charconv>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/checkpoint/pickle.h"
#include "fathom/checkpoint/zip.h"

namespace fathom {

std::string metadata_json_text() {
  return R"({"sharded_backend": "torch_dist", "sharded_backend_version": 1, )"
         R"("common_backend": "torch", "common_backend_version": 1})";
}

void check_metadata_json(const std::string& directory) {
  const std::string path = join_path(directory, "metadata.json");
  FATHOM_CHECK(file_exists(path), directory, " is not a whole torch_dist checkpoint: it has no ",
               "metadata.json, which is written last",
               "\n  fix: give the directory of a checkpoint, or write it again");
  const Json json = read_json_file(path);
  const auto value = [&](const char* key) {
    return json.is_object() && json.contains(key) ? json[key] : Json();
  };
  FATHOM_CHECK(value("sharded_backend") == "torch_dist" && value("sharded_backend_version") == 1,
               path, ": sharded_backend ", value("sharded_backend").dump(), " version ",
               value("sharded_backend_version").dump(),
               "; only \"torch_dist\" version 1 is supported");
}

std::string encode_common_pt(const Json& args, int64_t iteration, bool with_optimizer) {
  PickleWriter w(/*memo_all=*/true);
  w.empty_dict();
  w.mark();
  w.string("args");
  w.global("argparse", "Namespace");
  w.empty_tuple();
  w.new_object();
  w.json(args);
  w.build();
  w.string("checkpoint_version");
  w.real(3.0);
  w.string("iteration");
  w.integer(iteration);
  w.string("num_floating_point_operations_so_far");
  w.integer(0);
  w.string("content_metadata");
  Json content;
  if (with_optimizer) {
    content["distrib_optim_sharding_type"] = "fully_reshardable";
    content["distrib_optim_fully_reshardable_mem_efficient"] = false;
  }
  content["singleton_local_shards"] = false;
  content["chained_optim_avoid_prefix"] = true;
  w.json(content);
  w.set_items();

  std::string out;
  TorchArchiveWriter archive("common", [&](const void* data, int64_t n) {
    out.append(static_cast<const char*>(data), static_cast<size_t>(n));
  });
  archive.add("data.pkl", w.finish());
  archive.add(".format_version", "1");
  archive.add(".storage_alignment", "64");
  archive.add("byteorder", "little");
  archive.add("version", "3\n");
  archive.finish();
  return out;
}

Json decode_common_pt(std::string_view bytes, const std::string& origin) {
  const TorchArchiveReader zip({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
                               origin, /*max_entries=*/4096);
  const ZipRecord& record = zip.get("data.pkl");
  zip.verify(record);
  const Pickle pickle =
      Pickle::decode({reinterpret_cast<const char*>(record.data.data()), record.data.size()},
                     PickleFile::kCommon, origin);
  return pickle.to_json(pickle.root());
}

std::string tracker_path(const std::string& save_dir) {
  return join_path(save_dir, "latest_checkpointed_iteration.txt");
}

std::optional<std::string> read_tracker(const std::string& save_dir) {
  const std::string path = tracker_path(save_dir);
  if (!file_exists(path)) return std::nullopt;
  std::string text = read_file(path);
  const char* space = " \t\r\n";
  text.erase(0, text.find_first_not_of(space));
  text.erase(text.find_last_not_of(space) + 1);
  const bool digits = !text.empty() && text.size() <= 18 &&
                      text.find_first_not_of("0123456789") == std::string::npos;
  FATHOM_CHECK(text == "release" || digits, path, ": expected \"release\" or a number, got \"",
               text.substr(0, 40), "\"", "\n  fix: write the number of the iteration to load");
  return text;
}

std::string iteration_name(int64_t iteration) {
  const std::string digits = std::to_string(iteration);
  return "iter_" + std::string(digits.size() < 7 ? 7 - digits.size() : 0, '0') + digits;
}

std::optional<int64_t> parse_iteration_name(std::string_view name) {
  if (!name.starts_with("iter_") || name.size() < 12 || name.size() > 23) return std::nullopt;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), value);
  if (error != std::errc() || end != name.data() + name.size() || value < 0) return std::nullopt;
  if (iteration_name(value) != name) return std::nullopt;
  return value;
}

std::string checkpoint_name(const std::string& tracker) {
  return tracker == "release" ? tracker : iteration_name(std::stoll(tracker));
}

std::string resolve_checkpoint(const std::string& path) {
  FATHOM_CHECK(directory_exists(path), path, ": there is no such directory",
               "\n  fix: give the directory of a checkpoint");
  if (file_exists(join_path(path, "metadata.json"))) return path;
  const std::optional<std::string> tracker = read_tracker(path);
  FATHOM_CHECK(tracker.has_value(), path,
               " is no torch_dist checkpoint: neither metadata.json nor "
               "latest_checkpointed_iteration.txt is there",
               "\n  fix: give the directory that prepare-spmd or a training run wrote");
  const std::string directory = join_path(path, checkpoint_name(*tracker));
  FATHOM_CHECK(file_exists(join_path(directory, "metadata.json")), tracker_path(path), " names ",
               *tracker, ", but ", directory, " is not a whole checkpoint",
               "\n  fix: restore that directory, or write the number of another one into the file");
  return directory;
}

}  // namespace fathom
