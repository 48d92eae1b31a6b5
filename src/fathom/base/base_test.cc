#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/hash.h"
#include "fathom/base/json.h"
#include "fathom/base/thread_pool.h"

namespace fathom {
namespace {

std::string temp_dir(const std::string& name) {
  const std::string path = ::testing::TempDir() + "fathom_base_" + name;
  std::filesystem::remove_all(path);
  make_directories(path);
  return path;
}

TEST(ThreadPoolTest, EveryIndexIsVisitedOnceWithAnyNumberOfThreads) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      pool.parallel_for(count, 3, [&](int64_t begin, int64_t end) {
        EXPECT_LE(end - begin, 3);
        for (int64_t i = begin; i < end; ++i) visits[static_cast<size_t>(i)].fetch_add(1);
      });
      for (auto& v : visits) EXPECT_EQ(v.load(), 1);
    }
  }
}

TEST(ThreadPoolTest, ExceptionOfABodyReachesTheCaller) {
  ThreadPool pool(2);
  EXPECT_THROW(pool.parallel_for(100, 1,
                                 [](int64_t begin, int64_t) {
                                   if (begin == 42) throw UserError("boom");
                                 }),
               UserError);
  int64_t sum = 0;
  pool.parallel_for(1, 1, [&](int64_t, int64_t end) { sum += end; });
  EXPECT_EQ(sum, 1);
}

TEST(JsonTest, DuplicateKeysAreRefusedWithTheOrigin) {
  try {
    parse_json(R"({"a": {"b": 1, "b": 2}})", "x.json");
    FAIL();
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("x.json"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("\"b\""), std::string::npos);
  }
  EXPECT_NO_THROW(parse_json(R"({"a": {"b": 1}, "b": 2})", "x.json"));
  EXPECT_THROW(parse_json("{} trailing", "x.json"), UserError);
  EXPECT_THROW(parse_json("", "x.json"), UserError);
}

TEST(FileTest, AtomicWriterLeavesNothingBehindWhenItIsNotFinished) {
  const std::string dir = temp_dir("atomic");
  { AtomicFileWriter(join_path(dir, "a")).write("x", 1); }
  EXPECT_TRUE(list_directory(dir).empty());
  write_file_atomic(join_path(dir, "a"), "hello");
  EXPECT_EQ(read_file(join_path(dir, "a")), "hello");
  EXPECT_EQ(list_directory(dir).size(), 1u);
}

TEST(FileTest, RemovesWhatKilledWritersLeftAndNothingElse) {
  const std::string dir = temp_dir("left");
  for (const char* name : {"a.jsonl.123.tmp", "a.jsonl", "b.tmp", "b.1x.tmp", "c.123", "..tmp"}) {
    write_file_atomic(join_path(dir, name), "x");
  }
  remove_temporaries(dir);
  EXPECT_EQ(list_directory(dir),
            (std::vector<std::string>{"..tmp", "a.jsonl", "b.1x.tmp", "b.tmp", "c.123"}));
}

TEST(FileTest, DiskFullIsAnErrorThatNamesThePathAndTheMend) {
  try {
    const int full = 1 << 16;
    std::vector<char> bytes(full);
    AtomicFileWriter writer("/dev/full/none");
    writer.write(bytes.data(), full);
    FAIL();
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("/dev/full"), std::string::npos);
  }
}

TEST(FileTest, SecondLockIsRefusedUntilTheFirstIsGone) {
  const std::string path = join_path(temp_dir("lock"), "lock");
  auto first = FileLock::try_acquire(path);
  ASSERT_TRUE(first);
  EXPECT_FALSE(FileLock::try_acquire(path));
  first.reset();
  EXPECT_TRUE(FileLock::try_acquire(path));
}

TEST(HashTest, Sha256OfKnownText) {
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace fathom
