#include "fathom/checkpoint/inspect_verify.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <functional>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/file_hash.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/inspect_tensors.h"
#include "fathom/checkpoint/model_tensors.h"
#include "fathom/checkpoint/training_state.h"
#include "fathom/checkpoint/zip.h"

namespace fathom {
namespace fs = std::filesystem;
namespace {

bool is_hex(const std::string& text, size_t length) {
  return text.size() == length && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

/// What a Hub client wrote down about a file.
struct PromisedHash {
  std::string hash;         // SHA-256 or git's SHA-1; empty: nothing is known
  bool is_changed = false;  // after the download, on purpose or not
};

PromisedHash promised_hash(const std::string& directory, const std::string& name) {
  const std::string path = join_path(directory, name);
  std::error_code error;
  const fs::path target = fs::read_symlink(path, error);
  if (!error && target.parent_path().filename() == "blobs") return {target.filename().string()};
  const std::string note =
      join_path(directory, ".cache/huggingface/download/" + name + ".metadata");
  if (!file_exists(note)) return {};
  const std::string text = read_file(note);
  std::string lines[3];
  size_t at = 0;
  for (std::string& line : lines) {
    const size_t end = std::min(text.find('\n', at), text.size());
    line = text.substr(at, end - at);
    at = std::min(end + 1, text.size());
  }
  double time = 0;
  std::from_chars(lines[2].data(), lines[2].data() + lines[2].size(), time);
  struct stat info {};
  const bool is_changed =
      ::stat(path.c_str(), &info) == 0 && static_cast<double>(info.st_mtim.tv_sec) - 1 > time;
  return {lines[1], is_changed};
}

class Verifier {
 public:
  explicit Verifier(const std::string& path) : path_(path) {
    report_ = {{"kind", "verify"}, {"path", path}, {"ok", true}, {"bytes", 0}};
    report_["files"] = report_["notes"] = report_["problems"] = Json::array();
  }

  Json run() {
    visit(path_);
    report_["bytes"] = num_bytes_;
    report_["ok"] = report_["problems"].empty();
    return std::move(report_);
  }

 private:
  template <typename Body>
  bool attempt(Body&& body) {
    try {
      body();
      return true;
    } catch (const UserError& e) {
      report_["problems"].push_back(e.what());
      return false;
    }
  }

  void visit(const std::string& path) {
    const auto has = [&](const char* name) { return file_exists(join_path(path, name)); };
    if (file_exists(path)) {
      verify_file(parent_path(path), base_name(path), {"header"},
                  [&] { SafetensorsFile file(path); });
    } else if (has(kIndexName) || has(kSingleFileName)) {
      verify_model(path);
    } else if (has("metadata.json") || has(".metadata")) {
      verify_torch_dist(path);
    } else if (file_exists(tracker_path(path))) {
      verify_tracked(path);
    } else if (has("config.json") &&
               (has("metrics.jsonl") || directory_exists(join_path(path, "checkpoints")))) {
      verify_run(path);
    } else {
      throw UserError(str_cat(path, ": neither a model, nor torch_dist weights, training ",
                              "checkpoints, a safetensors file or a run"));
    }
  }

  // Reads the file from end to end, then `check`s it, then compares its hash.
  void verify_file(const std::string& directory, const std::string& name,
                   std::vector<std::string> checks, const std::function<void()>& check) {
    const std::string path = join_path(directory, name);
    int64_t size = 0;
    checks.insert(checks.begin(), "read");
    const bool is_good = attempt([&] {
      size = read_through(path);
      if (check) check();
      const PromisedHash promised = promised_hash(directory, name);
      const bool is_sha256 = is_hex(promised.hash, 64), is_git = is_hex(promised.hash, 40);
      if (promised.is_changed) {
        report_["notes"].push_back(path + " was changed after its download");
      } else if (is_sha256 || is_git) {
        const std::string got = is_sha256 ? file_sha256(path) : file_git_sha1(path);
        FATHOM_CHECK(got == promised.hash, path, ": ", is_sha256 ? "SHA-256 " : "git hash ", got,
                     ", the Hub promised ", promised.hash, "\n  fix: fetch this file again");
        checks.push_back(is_sha256 ? "sha256" : "git sha1");
      }
    });
    num_bytes_ += size;
    if (is_good) report_["files"].push_back({{"path", path}, {"bytes", size}, {"checks", checks}});
  }

  int64_t read_through(const std::string& path) const {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    FATHOM_CHECK(fd >= 0, "cannot open ", path, ": ", std::strerror(errno));
    struct stat info {};
    ::fstat(fd, &info);
    std::vector<char> buffer(size_t{8} << 20);
    int64_t total = 0;
    ssize_t n = 0;
    while ((n = ::read(fd, buffer.data(), buffer.size())) > 0 || (n < 0 && errno == EINTR))
      if (n > 0) total += n;
    const int code = n < 0 ? errno : 0;
    ::close(fd);
    FATHOM_CHECK(code == 0, "cannot read ", path, " beyond byte ", total, ": ",
                 std::strerror(code));
    FATHOM_CHECK(total == info.st_size, path, ": ", total, " bytes can be read of ", info.st_size);
    return total;
  }

  void verify_model(const std::string& path) {
    for (const std::string& name : list_directory(path)) {
      const std::string file = join_path(path, name);
      if (!file_exists(file)) continue;
      if (name.ends_with(".safetensors"))
        verify_file(path, name, {"header"}, [&] { SafetensorsFile opened(file); });
      else if (name.ends_with(".json"))
        verify_file(path, name, {"json"}, [&] { check_json(file); });
      else
        verify_file(path, name, {}, nullptr);
    }
    attempt([&] {
      const TensorShards shards(path);
      for (const std::string& warning : shards.warnings()) report_["notes"].push_back(warning);
    });
    if (file_exists(join_path(path, "config.json"))) attempt([&] { ModelTensors tensors(path); });
  }

  // An index may have a hundred thousand keys: its own reader checks it (TensorShards).
  static void check_json(const std::string& path) {
    if (base_name(path) != kIndexName) read_json_file(path);
  }

  void verify_torch_dist(const std::string& path) {
    for (const std::string& name : list_directory(path))
      if (file_exists(join_path(path, name))) verify_file(path, name, {}, nullptr);
    attempt([&] {
      DcpReader reader(path);
      for (const auto& [key, tensor] : reader.metadata().tensors)
        for (const DcpChunk& chunk : tensor.chunks)
          attempt([&, &k = key] { verify_chunk(reader, k, chunk); });
      for (const auto& [key, bytes] : reader.metadata().bytes)
        attempt([&, &k = key, &b = bytes] { verify_bytes(path, k, b); });
      if (file_exists(join_path(path, "common.pt"))) reader.read_common();
    });
  }

  void verify_chunk(DcpReader& reader, const std::string& key, const DcpChunk& chunk) {
    int64_t num_bytes = dtype_size(reader.tensor(key).dtype);
    for (const int64_t size : chunk.sizes) num_bytes *= size;
    scratch_.resize(static_cast<size_t>(num_bytes));
    reader.read_box(key, chunk.offsets, chunk.sizes, scratch_.data());
  }

  static void verify_bytes(const std::string& path, const std::string& key, const DcpBytes& item) {
    const std::string file_path = join_path(path, item.file);
    const MappedFile file(file_path);
    FATHOM_CHECK(item.offset + item.length <= file.size(), file_path, ": the file has become ",
                 "shorter");
    const TorchArchiveReader archive({file.data() + item.offset, static_cast<size_t>(item.length)},
                                     file_path + ": " + key);
    for (const ZipRecord& record : archive.records()) archive.verify(record);
  }

  void verify_tracked(const std::string& path) {
    attempt([&] {
      if (read_tracker(path) == "release") return visit(resolve_checkpoint(path));
      latest_training_state(path);
      for (const int64_t step : list_training_states(path))
        verify_torch_dist(join_path(path, iteration_name(step)));
    });
  }

  void verify_run(const std::string& path) {
    verify_file(path, "config.json", {"json"},
                [&] { read_json_file(join_path(path, "config.json")); });
    if (file_exists(join_path(path, "metrics.jsonl")))
      verify_file(path, "metrics.jsonl", {"json"},
                  [&] { check_lines(join_path(path, "metrics.jsonl")); });
    const std::string checkpoints = join_path(path, "checkpoints");
    if (directory_exists(checkpoints) && file_exists(tracker_path(checkpoints)))
      verify_tracked(checkpoints);
  }

  // The last line may be one that a run is writing.
  static void check_lines(const std::string& path) {
    const std::string text = read_file(path);
    int64_t line = 0;
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos;
         begin = end + 1)
      parse_json(text.substr(begin, end - begin), str_cat(path, " line ", ++line));
  }

  std::string path_;
  Json report_;
  int64_t num_bytes_ = 0;
  std::vector<uint8_t> scratch_;
};

}  // namespace

Json verify_path(const std::string& path) { return Verifier(path).run(); }

std::string verify_table(const Json& report) {
  std::string text;
  for (const Json& file : report["files"]) {
    text += str_cat("ok  ", file["path"].get<std::string>(), "  ", file["bytes"].dump(), " bytes");
    for (const Json& check : file["checks"]) text += ", " + check.get<std::string>();
    text += "\n";
  }
  for (const Json& note : report["notes"]) text += "note: " + note.get<std::string>() + "\n";
  for (const Json& problem : report["problems"])
    text += "problem: " + problem.get<std::string>() + "\n";
  return text + str_cat(report["bytes"].dump(), " bytes read, ", report["problems"].size(),
                        report["problems"].size() == 1 ? " problem\n" : " problems\n");
}

}  // namespace fathom
