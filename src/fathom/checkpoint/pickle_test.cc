#include "fathom/checkpoint/pickle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fathom/base/error.h"

namespace fathom {
namespace {

using namespace std::string_literals;

std::string error_of(std::string_view bytes, PickleFile file) {
  try {
    Pickle::decode(bytes, file, "f");
  } catch (const UserError& e) {
    return e.what();
  }
  return "no error";
}

void expect_error(std::string_view bytes, PickleFile file, const std::string& part) {
  const std::string message = error_of(bytes, file);
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

std::string encode(const Json& value, bool memo_all = true) {
  PickleWriter w(memo_all);
  w.json(value);
  return w.finish();
}

// pickle.dumps(value, protocol=2) of CPython 3.11.
TEST(PickleWriterTest, WritesTheBytesOfPython) {
  EXPECT_EQ(encode(Json::parse(R"({"a": 1, "bc": [1.5, "a", null, true], "d": {"x": -1}})")),
            "\x80\x02}q\0(X\1\0\0\0aq\1K\1X\2\0\0\0bcq\2]q\3(G?\xf8\0\0\0\0\0\0h\1N\x88"
            "eX\1\0\0\0dq\4}q\5X\1\0\0\0xq\6J\xff\xff\xff\xffsu."s);
  EXPECT_EQ(encode(Json(255)), "\x80\x02K\xff."s);
  EXPECT_EQ(encode(Json(256)), "\x80\x02M\0\1."s);
  EXPECT_EQ(encode(Json(65536)), "\x80\x02J\0\0\1\0."s);
  EXPECT_EQ(encode(Json(2147483648)), "\x80\x02\x8a\5\0\0\0\x80\0."s);
  EXPECT_EQ(encode(Json(-2147483649)), "\x80\x02\x8a\5\xff\xff\xff\x7f\xff."s);
}

TEST(PickleTest, PlainDataGoesThroughUnchanged) {
  Json value;
  for (int64_t i : {int64_t{0}, int64_t{-1}, int64_t{127}, int64_t{128}, int64_t{255}, int64_t{256},
                    int64_t{-128}, int64_t{-129}, int64_t{65535}, int64_t{65536},
                    int64_t{INT32_MAX}, int64_t{INT32_MIN}, int64_t{INT32_MAX} + 1,
                    int64_t{INT32_MIN} - 1, int64_t{1} << 40, -(int64_t{1} << 55),
                    std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}) {
    value["ints"].push_back(i);
  }
  value["reals"] = {0.1, -0.0, 1e300, 5e-324};
  value["text"] = "h\u00e9llo";
  value["nested"] = {{"empty", Json::array()}, {"none", nullptr}, {"yes", true}, {"no", false}};
  for (int i = 0; i < 400; ++i) value["many"].push_back(str_cat("key", i % 300));
  for (bool memo_all : {true, false}) {
    const std::string bytes = encode(value, memo_all);
    const Pickle p = Pickle::decode(bytes, PickleFile::kCommon, "f");
    EXPECT_EQ(p.to_json(p.root()).dump(), value.dump());
  }
}

TEST(PickleTest, EveryTruncationIsAnError) {
  const std::string bytes = encode(Json::parse(R"({"a": [1, 2.5, "x"], "b": {"c": 70000}})"));
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_NE(error_of(std::string_view(bytes).substr(0, n), PickleFile::kCommon), "no error") << n;
  }
}

TEST(PickleTest, RandomBytesNeverCrash) {
  const std::string seedling = encode(Json::parse(R"({"a": [1, 2.5, "x"], "b": {"c": 70000}})"));
  uint64_t state = 1;
  const auto next = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>(state >> 33);
  };
  int errors = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = seedling;
    for (size_t k = 0; k < 1 + next() % 4; ++k) {
      bytes[2 + next() % (bytes.size() - 2)] = static_cast<char>(next());
    }
    errors += error_of(bytes, PickleFile::kCommon) != "no error";
  }
  EXPECT_GT(errors, 1000);
}

TEST(PickleTest, HostileCallsAreNamedAndRefusedInEveryKindOfFile) {
  for (PickleFile file : {PickleFile::kTensor, PickleFile::kMetadata, PickleFile::kCommon}) {
    expect_error(
        "\x80\x02"
        "cos\nsystem\nX\2\0\0\0id\x85R."s,
        file, "hostile: it asks for os.system");
    expect_error(
        "\x80\x02"
        "c__builtin__\neval\nX\1\0\0\0x\x85R."s,
        file, "hostile: it asks for builtins.eval");
    expect_error("\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R."s, file, "hostile");
    expect_error(
        "\x80\x02"
        "ctorch.storage\n_load_from_bytes\nC\1x\x85R."s,
        file, "hostile: it asks for torch.storage._load_from_bytes");
    expect_error(
        "\x80\x02"
        "cos.path\njoin\n."s,
        file, "hostile");
  }
}

TEST(PickleTest, NamesOfOtherFilesAreRefused) {
  expect_error(
      "\x80\x02"
      "cargparse\nNamespace\n)\x81."s,
      PickleFile::kTensor, "which files of this kind may not");
  expect_error(
      "\x80\x02"
      "ctorch\nFloatStorage\n."s,
      PickleFile::kMetadata, "which files of this kind may not");
  EXPECT_EQ(error_of("\x80\x02"
                     "cmiles.utils\nThing\n)\x81}b."s,
                     PickleFile::kCommon),
            "no error");
}

TEST(PickleTest, ComputedOrOddNamesAreRefused) {
  // STACK_GLOBAL on something that is no string.
  expect_error("\x80\x04\x8c\2no)\x93."s, PickleFile::kCommon, "not a string");
  expect_error("\x80\x04\x8c\3a b\x8c\1x\x93."s, PickleFile::kCommon, "character");
  expect_error(
      "\x80\x02"
      "c"s +
          std::string(300, 'a') + "\nx\n."s,
      PickleFile::kCommon, "256");
  expect_error("\x80\x02K\1)R."s, PickleFile::kCommon, "without a name");
}

TEST(PickleTest, OpcodesOutsideTheListAreRefused) {
  for (char code : {'i', 'o', 'P', '\x82', '\x83', '\x84', '0', '1', '2',    '\x92', 'I',
                    'L', 'F', 'S', 'V',    'g',    'p',    'd', 'l', '\x96', '\x97', '\x98'}) {
    expect_error("\x80\x02N"s + code + "aaaaaaaa\naaaaa\n."s, PickleFile::kCommon,
                 "which is not allowed");
  }
  expect_error("\x80\x02N.N"s, PickleFile::kCommon, "1 bytes after its end");
  expect_error("\x80\x06N."s, PickleFile::kCommon, "protocol 6");
  expect_error("\x80\x02NN."s, PickleFile::kCommon, "left on its stack");
  expect_error("\x80\x02(."s, PickleFile::kCommon, "operand");
}

TEST(PickleTest, SizesAreBounded) {
  expect_error("\x80\x02X\xff\xff\xff\x7f"s, PickleFile::kCommon, "a string of");
  expect_error("\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff"s, PickleFile::kCommon, "a string of");
  expect_error("\x80\x02\x8b\xff\xff\xff\x7f"s, PickleFile::kCommon, "an integer of");
  expect_error("\x80\x02\x8a\x0a\0\0\0\0\0\0\0\0\0\1."s, PickleFile::kCommon, "64 bits");
  expect_error("\x80\x02Nr\xff\xff\xff\x7f."s, PickleFile::kCommon, "memo entry");
  expect_error("\x80\x02j\1\0\0\0."s, PickleFile::kCommon, "is not set");
  expect_error("\x80\x04\x95\xff\0\0\0\0\0\0\0N."s, PickleFile::kCommon, "frame");
  expect_error(std::string(70 << 10, 'N'), PickleFile::kTensor, "at most 65536");
}

TEST(PickleTest, DeepNestingMemoBombsAndCyclesEndInErrors) {
  // A million lists inside one another: decoding is flat, taking it as data is refused.
  std::string deep = "\x80\x02"s;
  for (int i = 0; i < 1000000; ++i) deep += ']';
  for (int i = 1; i < 1000000; ++i) deep += 'a';
  const Pickle nested = Pickle::decode(deep + ".", PickleFile::kCommon, "f");
  EXPECT_THROW(nested.to_json(nested.root()), UserError);
  // Each of 40 lists holds the one before twice: 2^40 values if written out.
  std::string bomb = "\x80\x02]q\0"s;
  for (int i = 0; i < 40; ++i) bomb += "](h\0h\0eq\0"s;
  // The first list stays below on the stack, so pack all of them into one tuple.
  std::string packed = "\x80\x02("s + bomb.substr(2) + "t.";
  const Pickle p = Pickle::decode(packed, PickleFile::kCommon, "f");
  EXPECT_THROW(p.to_json(p.root()), UserError);
  // A list that holds itself.
  const Pickle cycle = Pickle::decode("\x80\x02]q\0h\0a."s, PickleFile::kCommon, "f");
  EXPECT_THROW(cycle.to_json(cycle.root()), UserError);
}

TEST(PickleTest, PersistentIdsMustBeStorages) {
  expect_error("\x80\x02X\4\0\0\0file\x85Q."s, PickleFile::kTensor, "not a storage");
  expect_error("\x80\x02K\1Q."s, PickleFile::kTensor, "not a storage");
  expect_error("\x80\x02X\7\0\0\0storage\x85Q."s, PickleFile::kMetadata, "persistent id");
}

TEST(PickleTest, DictKeysAreSimple) {
  expect_error("\x80\x02}]K\1s."s, PickleFile::kCommon, "dict key");
  expect_error("\x80\x02}(K\1u."s, PickleFile::kCommon, "without its value");
  expect_error("\x80\x02]K\1K\2s."s, PickleFile::kCommon, "SETITEM on something else");
}

}  // namespace
}  // namespace fathom
