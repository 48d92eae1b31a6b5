#include "fathom/checkpoint/hub_files.h"

#include "fathom/base/file.h"

namespace fathom {
namespace {

bool travels(const std::string& name) {
  for (const char* prefix : {"tokenizer", "chat_template"}) {
    if (name.starts_with(prefix)) return true;
  }
  for (const char* whole : {"generation_config.json", "special_tokens_map.json",
                            "added_tokens.json", "vocab.json", "merges.txt"}) {
    if (name == whole) return true;
  }
  return name.ends_with(".py");
}

}  // namespace

void copy_hub_files(const std::string& from_directory, const std::string& to_directory) {
  for (const std::string& name : list_directory(from_directory)) {
    const std::string from = join_path(from_directory, name);
    if (travels(name) && file_exists(from)) {
      write_file_atomic(join_path(to_directory, name), read_file(from));
    }
  }
}

Json decoded_config(Json config, bool was_quantised) {
  config.erase("quantization_config");
  config.erase("expert_dtype");
  if (config.contains("model_type")) config["model_type"] = "deepseek_v4";
  if (was_quantised) {
    const bool newer = config.contains("dtype") && !config.contains("torch_dtype");
    const bool original_dialect = config.contains("n_layers");
    config[newer ? "dtype" : "torch_dtype"] = original_dialect && newer ? "bf16" : "bfloat16";
    config.erase("scale_fmt");
    config.erase("scale_dtype");
  }
  return config;
}

}  // namespace fathom
