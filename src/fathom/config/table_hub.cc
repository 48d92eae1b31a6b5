// Rows of the Hub client.
#include "fathom/config/table.h"

namespace fathom::config {

void describe_hub_options(OptionTable& table, Options& options) {
  HubOptions& o = options.hub;
  const CommandSet download = set_of(Command::kDownload);
  table.group("Hub", download);
  table.add("repo", &o.repo, "repository: ORGANISATION/NAME").positional().required_for(download);
  table.add("files", &o.files, "files of the repository; none: all of them")
      .one_word_each()
      .positional();
  table.add_choice<HubRepoType>("repo-type", &o.repo_type,
                                {{"model", HubRepoType::kModel},
                                 {"dataset", HubRepoType::kDataset},
                                 {"space", HubRepoType::kSpace}},
                                "what kind of repository it is");
  table
      .add("revision", &o.revision,
           "branch, tag or commit of the repository; in the pipeline, of the model's")
      .for_commands(download | kPipeline)
      .not_hashed();
  table
      .add("include", &o.include,
           "only files that match this pattern; may be given several times. * crosses /")
      .one_word_each();
  table.add("exclude", &o.exclude, "no files that match this pattern; may be given several times")
      .one_word_each();
  table.add("cache-dir", &o.cache_dir, "the shared cache; unset: HF_HUB_CACHE, $HF_HOME/hub")
      .path();
  table.add("local-dir", &o.local_dir, "put the files here, not into the shared cache").path();
  table.add("force-download", &o.force_download, "fetch files that are there, too");
  table
      .add("dry-run", &options.tool.dry_run,
           "of download: say what would be fetched. Of train and full-train: build every rank's "
           "shards, groups, schedule and messages on paper and run one step of them")
      .for_commands(download | kTraining)
      .not_hashed();
  table.add("token", &o.token, "access token; better given by HF_TOKEN, which no one else can see");
  table.add("max-workers", &o.max_workers, "files and ranges fetched at a time")
      .at_least(1)
      .at_most(64)
      .for_commands(download | kPipeline)
      .not_hashed();
}

}  // namespace fathom::config
