// How to reach a Hub, from the environment variables of its Python client.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "fathom/hub/retry.h"

namespace fathom::hub {

struct HubSettings {
  std::string endpoint = "https://huggingface.co";  // no slash at the end
  std::string token;                                // empty: none
  std::string cache_dir;
  std::string ca_file;  // certificates to trust; empty: the system's
  bool is_offline = false;
  bool use_symlinks = true;
  double metadata_timeout_s = 10;  // to connect, and without a byte of an answer
  double download_timeout_s = 10;  // without a byte of a file
  int max_workers = 8;
  int64_t range_bytes = int64_t{64} << 20;  // larger files are fetched in ranges of this size
  RetryPolicy retry;
};

/// HF_ENDPOINT; HF_TOKEN, HUGGING_FACE_HUB_TOKEN, else the file HF_TOKEN_PATH or $HF_HOME/token;
/// HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub; HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE;
/// HF_HUB_DISABLE_SYMLINKS; HF_HUB_DISABLE_IMPLICIT_TOKEN; HF_HUB_ETAG_TIMEOUT,
/// HF_HUB_DOWNLOAD_TIMEOUT; REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE. HF_HOME is
/// $XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface.
/// Errors: ConfigError for an end point that is no http(s) URL, a token with control characters, a
/// time-out that is no number.
HubSettings read_hub_settings(const std::map<std::string, std::string>& environment);

}  // namespace fathom::hub
