#include "hub_download.h"

#include <algorithm>
#include <cstdio>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#ifdef FATHOM_HAS_HUB
#include "fathom/hub/api.h"
#include "fathom/hub/patterns.h"
#include "fathom/hub/record.h"
#include "fathom/hub/snapshot.h"
#include "transfer_report.h"
#endif

namespace fathom {

#ifdef FATHOM_HAS_HUB
namespace {

hub::HubSettings settings_of(const config::HubOptions& options) {
  hub::HubSettings settings = hub::read_hub_settings(config::current_environment());
  if (options.token) settings.token = *options.token;
  if (options.cache_dir) settings.cache_dir = *options.cache_dir;
  settings.max_workers = static_cast<int>(options.max_workers);
  return settings;
}

hub::RepoType type_of(config::HubRepoType type) {
  switch (type) {
    case config::HubRepoType::kDataset:
      return hub::RepoType::kDataset;
    case config::HubRepoType::kSpace:
      return hub::RepoType::kSpace;
    case config::HubRepoType::kModel:
      break;
  }
  return hub::RepoType::kModel;
}

hub::Snapshot download(const hub::HubSettings& settings, const hub::SnapshotRequest& request) {
  TransferReport report(request.repo.name);
  return hub::download_snapshot(
      settings, request, [&](const hub::TransferProgress& progress) { report.update(progress); });
}

hub::SnapshotRequest request_of(const HubSource& source, const std::string& to) {
  hub::SnapshotRequest request;
  request.repo = {source.is_dataset ? hub::RepoType::kDataset : hub::RepoType::kModel,
                  source.repository};
  request.revision = source.revision;
  request.include = source.include;
  request.local_dir = to;
  return request;
}

}  // namespace

HubFunctions hub_functions(const config::Options& options) {
  HubFunctions functions;
  functions.is_downloaded = [](const HubSource& source, const std::string& to) {
    return hub::is_complete_download(request_of(source, to), source.edited);
  };
  functions.has_notes = [](const std::string& to) { return hub::has_download_notes(to); };
  functions.download = [&options](const HubSource& source, const std::string& to) {
    const hub::SnapshotRequest request = request_of(source, to);
    try {
      const hub::Snapshot got = download(settings_of(options.hub), request);
      log_info(source.repository, " at ", got.commit.empty() ? source.revision : got.commit, " -> ",
               to, ", ", got.num_fetched, " of ", got.files.size(), " files, ", got.bytes_fetched,
               " bytes fetched");
      const bool is_changed =
          std::any_of(got.files.begin(), got.files.end(), [&](const hub::SnapshotFile& f) {
            return f.is_fetched && std::find(source.edited.begin(), source.edited.end(),
                                             f.file.path) == source.edited.end();
          });
      return is_changed ? HubOutcome::kChanged : HubOutcome::kUnchanged;
    } catch (const hub::HubRefusal& e) {
      if (!e.is_missing_repo()) throw;
      log_info(e.what());
      return HubOutcome::kNoSuchRepository;
    }
  };
  return functions;
}

int download_from_hub(const config::HubOptions& o, bool dry_run) {
  hub::SnapshotRequest request;
  request.repo = {type_of(o.repo_type), *o.repo};
  request.revision = o.revision;
  request.include = o.include;
  // A name is not a pattern, even with brackets in it.
  for (const std::string& file : o.files) request.include.push_back(hub::literal_pattern(file));
  request.exclude = o.exclude;
  request.local_dir = o.local_dir.value_or("");
  request.force = o.force_download;
  request.dry_run = dry_run;
  const hub::Snapshot got = download(settings_of(o), request);
  for (const std::string& file : o.files) {
    bool is_there = got.commit.empty();
    for (const hub::SnapshotFile& f : got.files) is_there = is_there || f.file.path == file;
    FATHOM_CHECK(is_there, *o.repo, " at ", o.revision, " has no file ", file);
  }
  if (dry_run) {
    for (const hub::SnapshotFile& f : got.files)
      std::printf("%s %lld %s\n", f.is_fetched ? "fetch" : "there",
                  static_cast<long long>(f.file.size), f.file.path.c_str());
    return 0;
  }
  log_info(got.num_fetched, " of ", got.files.size(), " files, ", got.bytes_fetched,
           " bytes fetched");
  std::printf("%s\n", got.path.c_str());
  return 0;
}

#else

HubFunctions hub_functions(const config::Options&) { return {}; }

int download_from_hub(const config::HubOptions&, bool) {
  throw ConfigError("this build has no Hub client\n  fix: configure with -DFATHOM_HUB=ON");
}

#endif

}  // namespace fathom
