#include "fathom/rl/run_directory.h"

#include "fathom/base/error.h"

namespace fathom {

RunDirectory::RunDirectory(const std::string& path) : path_(path) {
  for (const char* folder : {"", "checkpoints", "rollout", "eval"}) {
    make_directories(join_path(path_, folder));
  }
  lock_ = FileLock::try_acquire(join_path(path_, "lock"));
  FATHOM_CHECK(lock_ != nullptr, "run directory ", path_,
               ": another process is running in it\n"
               "  fix: wait for it to end, or choose another --run-id");
  for (const char* folder : {"", "rollout", "eval"}) remove_temporaries(join_path(path_, folder));
}

void RunDirectory::save_config(const Json& config) const {
  const std::string text = config.dump(2) + "\n";
  const std::string path = join_path(path_, "config.json");
  if (!file_exists(path)) return write_file_atomic(path, text);
  if (read_file(path) != text) write_file_atomic(join_path(path_, "config_resumed.json"), text);
}

void RunDirectory::write_samples(const std::string& folder, const std::string& name,
                                 const std::vector<const Sample*>& samples) const {
  static constexpr const char* kStatus[] = {"pending", "completed", "truncated", "aborted",
                                            "failed"};
  std::string lines;
  for (const Sample* s : samples) {
    const Json line = {{"prompt", s->prompt},
                       {"label", s->label},
                       {"response", s->response},
                       {"reward", s->reward},
                       {"response_length", s->response_length},
                       {"status", kStatus[static_cast<int>(s->status)]}};
    lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  write_file_atomic(join_path(join_path(path_, folder), name), lines);
}

std::vector<Json> RunDirectory::read_samples(const std::string& folder,
                                             const std::string& name) const {
  const std::string path = join_path(join_path(path_, folder), name);
  std::vector<Json> samples;
  if (!file_exists(path)) return samples;
  const std::string text = read_file(path);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    samples.push_back(parse_json(text.substr(begin, end - begin), path));
    begin = end + 1;
  }
  return samples;
}

}  // namespace fathom
