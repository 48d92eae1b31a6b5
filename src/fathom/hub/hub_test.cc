#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/file_hash.h"
#include "fathom/hub/cache_layout.h"
#include "fathom/hub/local_layout.h"
#include "fathom/hub/partial_file.h"
#include "fathom/hub/patterns.h"
#include "fathom/hub/repo.h"
#include "fathom/hub/retry.h"
#include "fathom/hub/settings.h"
#include "fathom/hub/url.h"

namespace fathom::hub {
namespace {

namespace fs = std::filesystem;
const std::string kCommit(40, 'a');

std::string fresh_directory(const std::string& name) {
  const std::string path = ::testing::TempDir() + "fathom_hub_" + name;
  fs::remove_all(path);
  make_directories(path);
  return path;
}

RepoFile file_of(const std::string& path, const std::string& content) {
  const std::string scratch = ::testing::TempDir() + "fathom_hub_scratch";
  write_file_atomic(scratch, content);
  return {path, static_cast<int64_t>(content.size()), file_git_sha1(scratch), file_sha256(scratch),
          ""};
}

TEST(HubPatternsTest, MatchAsPythonsFnmatch) {
  EXPECT_TRUE(matches_pattern("data/sub/a.json", "data/*.json"));
  EXPECT_TRUE(matches_pattern("a", "?"));
  EXPECT_TRUE(matches_pattern("\xC3\xA9", "?"));
  EXPECT_FALSE(matches_pattern("A.json", "a.json"));
  EXPECT_TRUE(matches_pattern("x7", "x[0-9]"));
  EXPECT_FALSE(matches_pattern("x7", "x[!0-9]"));
  EXPECT_TRUE(matches_pattern("x]", "x[]]"));
  EXPECT_TRUE(matches_pattern("x[", "x["));
  EXPECT_TRUE(matches_pattern("", "*"));
  EXPECT_FALSE(matches_pattern("", "?"));
  EXPECT_FALSE(matches_pattern(std::string(60, 'a'), "*a*a*a*a*a*a*a*a*b"));
  EXPECT_TRUE(is_wanted("onnx/x", {}, {}));
  EXPECT_FALSE(is_wanted("onnx/x", {}, {"onnx/"}));
  EXPECT_FALSE(is_wanted("a.bin", {"*.json"}, {}));
  const std::string odd = "a[1]*?.txt";
  EXPECT_TRUE(matches_pattern(odd, literal_pattern(odd)));
  EXPECT_FALSE(matches_pattern("a1x?.txt", literal_pattern(odd)));
}

TEST(HubPatternsTest, PathsThatLeaveTheirDirectoryAreRefused) {
  for (const char* good : {"a", "a/b..c/d", ".gitattributes", "..a", "a/...", "x y/\xC3\xA9"})
    EXPECT_NO_THROW(check_path_is_safe(good)) << good;
  for (const char* bad : {"", "/etc/passwd", "../a", "a/../b", "a/..", "a\\..\\b", "C:/x", "a/C:x",
                          "\\\\host\\share", "a//b", "a/", "./a", "a/\\b", "a\nb"})
    EXPECT_THROW(check_path_is_safe(bad), UserError) << bad;
}

TEST(HubRetryTest, WaitsAreTheServersOrDouble) {
  HttpResponse response;
  response.status = 429;
  response.headers = {{"ratelimit", "\"api\";r=0;t=55"}};
  EXPECT_EQ(retry_delay_s({}, 1, response), 56);
  response.headers = {{"ratelimit", "\"api\";r=3;t=55, \"resolvers\"; r=0; t=7"}};
  EXPECT_EQ(retry_delay_s({}, 1, response), 8);
  response.headers = {{"retry-after", "12"}};
  EXPECT_EQ(retry_delay_s({}, 3, response), 12);
  response.headers = {{"retry-after", "99999999"}};
  EXPECT_EQ(retry_delay_s({}, 1, response), 600);
  response.headers = {{"retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"}};
  EXPECT_EQ(retry_delay_s({}, 2, response), 2);
  response.headers.clear();
  for (const auto& [failures, delay] : {std::pair{1, 1.0}, {2, 2.0}, {3, 4.0}, {4, 8.0}, {9, 8.0}})
    EXPECT_EQ(retry_delay_s({}, failures, response), delay);
  EXPECT_TRUE(is_worth_retrying(response));
  response.status = 404;
  EXPECT_FALSE(is_worth_retrying(response));
}

TEST(HubUrlTest, OriginsEncodingAndRedirects) {
  EXPECT_EQ(percent_encode("refs/pr/1", false), "refs%2Fpr%2F1");
  EXPECT_EQ(percent_encode("a b/\xC3\xA9+.txt", true), "a%20b/%C3%A9%2B.txt");
  EXPECT_EQ(url_origin("https://HF.co/a?b"), "https://hf.co:443");
  EXPECT_NE(url_origin("http://h:1/"), url_origin("http://h:2/"));
  EXPECT_EQ(url_origin("http://user:pw@h:80/x"), url_origin("http://h/"));
  EXPECT_EQ(resolve_location("http://h/a/b?q", "/c"), "http://h/c");
  EXPECT_EQ(resolve_location("http://h/a/b", "https://i/c?s=1"), "https://i/c?s=1");
  EXPECT_THROW(resolve_location("https://h/a", "http://h/a"), UserError);
  EXPECT_THROW(resolve_location("http://h/a", "file:///etc/passwd"), UserError);
  EXPECT_TRUE(is_relative_location("/a:b"));
  EXPECT_FALSE(is_relative_location("//host/a"));
  EXPECT_FALSE(is_relative_location("https://host"));
  EXPECT_EQ(printable_url("https://u:p@h/a?Signature=secret"), "https://h/a");
}

TEST(HubRepoTest, NamesAndFolders) {
  for (const char* good : {"gpt2", "org/name", "O_1/n.a-m"}) EXPECT_NO_THROW(check_repo_name(good));
  for (const char* bad : {"", "a/b/c", "a--b", "../x", "a/", "/a", "a/-b", "a b", "a/b."})
    EXPECT_THROW(check_repo_name(bad), ConfigError) << bad;
  const Repo set{RepoType::kDataset, "org/name"};
  EXPECT_EQ(set.folder_name(), "datasets--org--name");
  EXPECT_EQ(set.api_prefix(), "api/datasets/org/name");
  EXPECT_EQ(set.resolve_prefix(), "datasets/org/name");
  EXPECT_EQ((Repo{RepoType::kModel, "org/name"}).resolve_prefix(), "org/name");
}

TEST(HubRepoTest, ListingsAndTheirCache) {
  const std::string oid(40, 'b'), sha(64, 'c');
  std::vector<RepoFile> files;
  add_tree_page(Json::parse(R"([{"type": "directory", "path": "d", "oid": "x", "size": 0},
                               {"type": "file", "path": "d/z", "oid": ")" +
                            oid + R"(", "size": 134, "xetHash": "h",
                                "lfs": {"oid": ")" +
                            sha + R"(", "size": 9000000000, "pointerSize": 134}},
                               {"type": "file", "path": "a", "oid": ")" +
                            oid + R"(", "size": 3}])"),
                "listing", &files);
  finish_tree("listing", &files);
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(files[0].etag(), oid);
  EXPECT_EQ(files[1].etag(), sha);
  EXPECT_EQ(files[1].size, 9000000000);
  const auto again = decode_tree_cache(encode_tree_cache(files));
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(encode_tree_cache(*again), encode_tree_cache(files));
  for (const char* bad : {"", "{}", "[]", R"({"format_version": 2, "files": {}})",
                          R"({"format_version": 1, "files": {"a": {"size": -1, "blob_id": "x"}}})"})
    EXPECT_FALSE(decode_tree_cache(bad).has_value()) << bad;
  files.push_back(files[0]);
  EXPECT_THROW(finish_tree("listing", &files), UserError);
  for (const char* bad :
       {"{}", R"([{"type": "file"}])", R"([{"type": "file", "path": "a", "oid": "x", "size": 1}])",
        R"([{"type": "file", "path": "a", "oid": "x", "size": -1}])",
        R"([{"type": "file", "path": "a", "oid": "x", "size": 18446744073709551615}])"}) {
    std::vector<RepoFile> none;
    EXPECT_THROW(add_tree_page(Json::parse(bad), "listing", &none), UserError) << bad;
  }
  EXPECT_EQ(next_page_url("<http://h/a?cursor=1>; rel=\"next\""), "http://h/a?cursor=1");
  EXPECT_EQ(next_page_url("<x>; rel=\"prev\", <y>; rel=\"next\""), "y");
  EXPECT_EQ(next_page_url("<x>; rel=\"prev\""), "");
  EXPECT_EQ(next_page_url("<x"), "");
}

TEST(HubSettingsTest, VariablesOfThePythonClient) {
  const std::string home = fresh_directory("home");
  make_directories(home + "/.cache/huggingface");
  write_file_atomic(home + "/.cache/huggingface/token", "hf_file\n");
  HubSettings s = read_hub_settings({{"HOME", home}});
  EXPECT_EQ(s.endpoint, "https://huggingface.co");
  EXPECT_EQ(s.cache_dir, home + "/.cache/huggingface/hub");
  EXPECT_EQ(s.token, "hf_file");
  EXPECT_FALSE(s.is_offline);
  write_file_atomic(home + "/other", "hf_other");
  EXPECT_EQ(read_hub_settings({{"HOME", home}, {"HF_TOKEN_PATH", "~/other"}}).token, "hf_other");
  s = read_hub_settings({{"HOME", home},
                         {"HF_TOKEN", " hf_x\n"},
                         {"HF_HOME", "/h"},
                         {"HF_ENDPOINT", "http://m:1/"},
                         {"HF_HUB_OFFLINE", "true"},
                         {"HF_HUB_DOWNLOAD_TIMEOUT", "2.5"}});
  EXPECT_EQ(s.token, "hf_x");
  EXPECT_EQ(s.cache_dir, "/h/hub");
  EXPECT_EQ(s.endpoint, "http://m:1");
  EXPECT_TRUE(s.is_offline);
  EXPECT_EQ(s.download_timeout_s, 2.5);
  EXPECT_EQ(read_hub_settings({{"HOME", home}, {"XDG_CACHE_HOME", "/x"}}).cache_dir,
            "/x/huggingface/hub");
  EXPECT_EQ(read_hub_settings({{"HOME", home}, {"HF_HUB_CACHE", "~/c"}}).cache_dir, home + "/c");
  EXPECT_EQ(read_hub_settings({{"HOME", home}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"}}).token, "");
  EXPECT_THROW(read_hub_settings({{"HF_TOKEN", "a b"}}), ConfigError);
  EXPECT_THROW(read_hub_settings({{"HF_ENDPOINT", "ftp://x"}}), ConfigError);
  EXPECT_THROW(read_hub_settings({{"HF_HUB_ETAG_TIMEOUT", "soon"}}), ConfigError);
}

TEST(HubPartialFileTest, PiecesInAnyOrderSurviveTheProcess) {
  const std::string dir = fresh_directory("partial");
  using Gaps = std::vector<std::pair<int64_t, int64_t>>;
  {
    const auto partial = PartialFile::open(dir + "/etag", 10);
    partial->write(6, "gh");
    partial->write(0, "ab");
    partial->write(2, "c");
    EXPECT_EQ(partial->missing(), (Gaps{{3, 6}, {8, 10}}));
    EXPECT_NE(PartialFile::open(dir + "/etag", 10)->path(), partial->path());  // it is in use
  }
  EXPECT_EQ(list_directory(dir).size(), 2u);
  {  // another size is another content
    const auto other = PartialFile::open(dir + "/etag", 11);
    EXPECT_EQ(other->bytes_present(), 0);
  }
  EXPECT_EQ(list_directory(dir).size(), 0u);
  {
    const auto partial = PartialFile::open(dir + "/etag", 10);
    partial->write(0, "abc");
    partial->write(6, "gh");
  }
  const auto partial = PartialFile::open(dir + "/etag", 10);
  EXPECT_EQ(partial->missing(), (Gaps{{3, 6}, {8, 10}}));
  partial->write(3, "def");
  partial->write(8, "ij");
  EXPECT_EQ(partial->bytes_present(), 10);
  partial->publish(dir + "/done");
  EXPECT_EQ(read_file(dir + "/done"), "abcdefghij");
  EXPECT_EQ(list_directory(dir), (std::vector<std::string>{"done"}));
}

TEST(HubPartialFileTest, ForeignAndDamagedLeftoversAreNotUsed) {
  const std::string dir = fresh_directory("leftovers");
  write_file_atomic(dir + "/etag.0123abcd.incomplete", "python's");
  write_file_atomic(dir + "/etag.77-0123abcd.incomplete", "0123456789");
  write_file_atomic(dir + "/etag.77-0123abcd.incomplete.ranges",
                    R"({"size": 10, "ranges": [[0, 11]]})");
  const auto partial = PartialFile::open(dir + "/etag", 10);
  EXPECT_EQ(partial->bytes_present(), 0);
  EXPECT_TRUE(file_exists(dir + "/etag.0123abcd.incomplete"));
  EXPECT_FALSE(file_exists(dir + "/etag.77-0123abcd.incomplete"));
}

void put(Destination& to, const RepoFile& file, const std::string& content) {
  to.lock_path(file, file.etag());
  const auto partial = PartialFile::open(to.partial_stem(file, file.etag()), file.size);
  partial->write(0, content);
  to.publish(file, file.etag(), partial.get());
}

TEST(HubLayoutTest, CacheHoldsBlobsAndRelativeLinks) {
  const std::string dir = fresh_directory("cache");
  const Repo repo{RepoType::kModel, "org/name"};
  CacheLayout cache(dir, repo, kCommit, true);
  const RepoFile file = file_of("a/b/c.txt", "hello");
  EXPECT_FALSE(cache.has(file));
  EXPECT_TRUE(fs::is_empty(dir));  // asking leaves no traces
  put(cache, file, "hello");
  EXPECT_TRUE(cache.has(file));
  const std::string pointer = dir + "/models--org--name/snapshots/" + kCommit + "/a/b/c.txt";
  EXPECT_EQ(fs::read_symlink(pointer), "../../../../blobs/" + file.etag());
  EXPECT_EQ(read_file(pointer), "hello");
  cache.write_ref("refs/pr/1");
  EXPECT_EQ(CacheLayout::read_ref(dir, repo, "refs/pr/1"), kCommit);
  EXPECT_EQ(CacheLayout::read_ref(dir, repo, "main"), std::nullopt);
  EXPECT_TRUE(file_exists(dir + "/CACHEDIR.TAG"));

  const std::string plain = fresh_directory("cache_plain");
  CacheLayout copies(plain, repo, kCommit, false);
  put(copies, file, "hello");
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(copies.snapshot_path() + "/a/b/c.txt")));
}

TEST(HubLayoutTest, LocalDirectoryKnowsWhatItHolds) {
  const std::string dir = fresh_directory("local");
  LocalLayout local(dir, kCommit, nullptr);
  const RepoFile file = file_of("sub/x.bin", "hello");
  put(local, file, "hello");
  EXPECT_TRUE(local.has(file));
  const std::string note = dir + "/.cache/huggingface/download/sub/x.bin.metadata";
  EXPECT_TRUE(read_file(note).starts_with(kCommit + "\n" + file.etag() + "\n"));
  EXPECT_EQ(read_file(dir + "/.cache/huggingface/.gitignore"), "*");
  // Changed behind the note's back, same size.
  fs::remove(note);
  write_file_atomic(dir + "/sub/x.bin", "jello");
  EXPECT_FALSE(local.has(file));
  // A file without a note is taken when its hash is right.
  write_file_atomic(dir + "/sub/x.bin", "hello");
  EXPECT_TRUE(local.has(file));
  EXPECT_TRUE(file_exists(note));
}

TEST(HubLayoutTest, SymbolicLinksInTheWayAreNotFollowed) {
  const std::string dir = fresh_directory("links"), outside = fresh_directory("outside");
  fs::create_directory_symlink(outside, dir + "/sub");
  LocalLayout local(dir, kCommit, nullptr);
  const RepoFile file = file_of("sub/x", "hello");
  EXPECT_THROW(put(local, file, "hello"), UserError);
  EXPECT_TRUE(fs::is_empty(outside));
  // A link in the place of the file is replaced.
  write_file_atomic(outside + "/victim", "mine");
  fs::create_symlink(outside + "/victim", dir + "/y");
  const RepoFile other = file_of("y", "hello");
  EXPECT_FALSE(local.has(other));
  put(local, other, "hello");
  EXPECT_EQ(read_file(outside + "/victim"), "mine");
  EXPECT_EQ(read_file(dir + "/y"), "hello");
}

TEST(HubHashTest, GitAndSha256) {
  const std::string path = fresh_directory("hash") + "/f";
  write_file_atomic(path, "hello\n");
  EXPECT_EQ(file_git_sha1(path), "ce013625030ba8dba906f756967f9e9ca394464a");
  EXPECT_EQ(file_sha256(path), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
}

}  // namespace
}  // namespace fathom::hub
