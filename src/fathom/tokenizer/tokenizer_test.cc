#include "fathom/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "fathom/base/error.h"
#include "fathom/base/file.h"
#include "fathom/base/json.h"
#include "fathom/base/thread_pool.h"
#include "fathom/tokenizer/added_tokens.h"
#include "fathom/tokenizer/bpe.h"
#include "fathom/tokenizer/byte_level.h"
#include "fathom/tokenizer/split_regex.h"
#include "fathom/tokenizer/utf8.h"

namespace fathom {
namespace {

using Ids = std::vector<int32_t>;

std::string message_of_error(const std::function<void()>& body) {
  try {
    body();
  } catch (const UserError& e) {
    return e.what();
  }
  return "no error";
}

void expect_error(const std::function<void()>& body, const std::string& part) {
  const std::string message = message_of_error(body);
  EXPECT_NE(message.find(part), std::string::npos) << "got: " << message;
}

// The three patterns of DeepSeek-V4.
const char* const kV4Patterns[] = {
    "\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"};

/// A V4-style tokenizer.json: ids 0..255 are the bytes, then one id for each merge's result.
Json synthetic_json(const std::vector<std::pair<std::string, std::string>>& merges) {
  Json vocabulary = Json::object(), merge_list = Json::array(), steps = Json::array();
  for (int b = 0; b < 256; ++b)
    vocabulary[spell_token_bytes(std::string(1, static_cast<char>(b)))] = b;
  for (const auto& [left, right] : merges) {
    const std::string a = spell_token_bytes(left), b = spell_token_bytes(right);
    if (!vocabulary.contains(a + b)) vocabulary[a + b] = vocabulary.size();
    merge_list.push_back(a + " " + b);
  }
  for (const char* pattern : kV4Patterns) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  return {{"added_tokens", Json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", steps}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merge_list}}}};
}

Json added_token(int id, const std::string& content, bool normalized = true, bool special = false) {
  return {{"id", id},        {"content", content},   {"normalized", normalized}, {"lstrip", false},
          {"rstrip", false}, {"single_word", false}, {"special", special}};
}

Tokenizer make(const Json& json, bool use_jit = true) {
  return Tokenizer::from_json(json.dump(), "test.json", {}, {.use_jit = use_jit});
}

// What the three patterns, one after another, make of a text.
std::vector<std::string> pieces_of(const std::string& text) {
  std::vector<std::string> todo{text};
  for (const char* pattern : kV4Patterns) {
    const SplitRegex regex(pattern);
    SplitRegex::Scratch scratch;
    std::vector<std::string> next;
    for (const std::string& part : todo) {
      size_t at = 0;
      TextRange match;
      while (regex.find(part, at, scratch, &match)) {
        if (match.begin > at) next.push_back(part.substr(at, match.begin - at));
        next.push_back(part.substr(match.begin, match.end - match.begin));
        at = match.end;
      }
      if (at < part.size()) next.push_back(part.substr(at));
    }
    todo = next;
  }
  return todo;
}

TEST(Utf8Test, BrokenBytesBecomeOneReplacementPerMaximalPart) {
  EXPECT_FALSE(find_invalid_utf8("plain ascii, \u00e9 \u4e2d \U0001F600").has_value());
  EXPECT_EQ(find_invalid_utf8("0123456789\xFF").value(), 10u);
  EXPECT_EQ(find_invalid_utf8("\xC0\x80").value(), 0u);          // overlong
  EXPECT_EQ(find_invalid_utf8("a\xED\xA0\x80").value(), 1u);     // surrogate
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80").value(), 0u);  // past U+10FFFF
  const std::string r = "\uFFFD";
  EXPECT_EQ(replace_invalid_utf8("a\xE4\xB8z"), "a" + r + "z");  // one for a cut character
  EXPECT_EQ(replace_invalid_utf8("\xE4\xB8"), r);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98\xF0"), r + r);
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), r + r + r);  // no part of it is a prefix
  EXPECT_EQ(replace_invalid_utf8("\xC1\xBF\xFE"), r + r + r);
}

TEST(ByteLevelTest, SpellingAndBytesAreInverse) {
  EXPECT_EQ(spell_token_bytes(" a\n"), "\u0120a\u010a");
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    EXPECT_EQ(bytes_of_spelled_token(spell_token_bytes(byte)).value(), byte);
  }
  EXPECT_FALSE(bytes_of_spelled_token("a b").has_value());
  EXPECT_FALSE(bytes_of_spelled_token("<\uFF5C>").has_value());
}

TEST(SplitRegexTest, V4PatternsCutAsPublished) {
  using V = std::vector<std::string>;
  EXPECT_EQ(pieces_of("Hello, world!"), (V{"Hello", ",", " world", "!"}));
  EXPECT_EQ(pieces_of("1234567"), (V{"123", "456", "7"}));
  EXPECT_EQ(pieces_of("\\boxed{26}"), (V{"\\boxed", "{", "26", "}"}));
  EXPECT_EQ(pieces_of("a  b   c"), (V{"a", " ", " b", "  ", " c"}));
  EXPECT_EQ(pieces_of("x \n\n y"), (V{"x", " \n\n", " y"}));
  EXPECT_EQ(pieces_of("end  "), (V{"end", "  "}));
  EXPECT_EQ(pieces_of("ab\u4e2d\u6587\u3042cd"), (V{"ab", "\u4e2d\u6587\u3042", "cd"}));
  EXPECT_EQ(pieces_of("e\u0301t"), (V{"e\u0301t"}));
  EXPECT_EQ(pieces_of("\x01\x02"), (V{"\x01\x02"}));  // matched by nothing: one piece
}

TEST(SplitRegexTest, SpaceIsUnicodeWhiteSpace) {
  const SplitRegex space("\\s"), not_space("\\S"), in_class("[a\\s]");
  SplitRegex::Scratch scratch;
  TextRange match;
  for (const char* text :
       {"\t", "\v", "\u0085", "\u00a0", "\u1680", "\u2003", "\u2028", "\u3000"}) {
    EXPECT_TRUE(space.find(text, 0, scratch, &match)) << text;
    EXPECT_TRUE(in_class.find(text, 0, scratch, &match)) << text;
    EXPECT_FALSE(not_space.find(text, 0, scratch, &match)) << text;
  }
  for (const char* text : {"\u180e", "\u200b", "\ufeff", "b"}) {
    EXPECT_FALSE(space.find(text, 0, scratch, &match)) << text;
    EXPECT_FALSE(in_class.find(text, 0, scratch, &match)) << text;
    EXPECT_TRUE(not_space.find(text, 0, scratch, &match)) << text;
  }
}

TEST(SplitRegexTest, ConstructsWithTwoMeaningsAreRefusedByName) {
  for (const auto& [pattern, part] : std::vector<std::pair<const char*, const char*>>{
           {"^a", "`^`"},
           {"a$", "`$`"},
           {"\\w+", "`\\w`"},
           {"a\\b", "`\\b`"},
           {"\\p{Han}", "not a general category"},
           {"\\p{L", "not a general category"},
           {"[a[b]]", "a class inside a class"},
           {"[a&&b]", "intersection"},
           {"[\\S]", "negated class"},
           {"[\\s-z]", "hyphen"},
           {"[abc", "a class without end"},
           {"(?i:a)", "a kind of group"},
           {"(*ACCEPT)", "a verb"},
           {"a{2,3}+", "possessive"},
           {"a{x}", "not a repeat"},
           {"a\\", "lone backslash"},
           {"(a", "parenthes"},
           {"a*", "empty string"},
       }) {
    expect_error([&] { SplitRegex regex(pattern); }, part);
  }
}

TEST(BpeTest, AgreesWithMergingLowestRankLeftmostFirst) {
  std::mt19937 rng(1);
  for (int round = 0; round < 40; ++round) {
    // Random merges over a few letters; long pieces take the heap, short ones the scan.
    std::vector<std::string> tokens;
    for (char c = 'a'; c <= 'd'; ++c) tokens.emplace_back(1, c);
    std::vector<std::array<int32_t, 3>> merges;
    for (int i = 0; i < 60; ++i) {
      const auto left = static_cast<int32_t>(rng() % tokens.size());
      const auto right = static_cast<int32_t>(rng() % tokens.size());
      const std::string text =
          tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
      if (text.size() > 12) continue;
      const auto same = std::find(tokens.begin(), tokens.end(), text);
      const auto result = static_cast<int32_t>(same - tokens.begin());
      if (same == tokens.end()) tokens.push_back(text);
      const bool twice = std::any_of(merges.begin(), merges.end(),
                                     [&](const auto& m) { return m[0] == left && m[1] == right; });
      if (!twice) merges.push_back({left, right, result});
    }
    BpeModel model({tokens.begin(), tokens.end()}, false);
    for (const auto& m : merges) model.add_merge(m[0], m[1], m[2]);
    BpeModel::Scratch scratch;
    for (size_t length : {1u, 2u, 3u, 7u, 31u, 32u, 33u, 34u, 200u}) {
      std::string piece;
      for (size_t i = 0; i < length; ++i) piece += static_cast<char>('a' + rng() % 4);
      Ids expected;
      for (const char c : piece) expected.push_back(c - 'a');
      for (bool changed = true; changed;) {
        changed = false;
        for (const auto& m : merges) {
          for (size_t i = 0; i + 1 < expected.size() && !changed; ++i) {
            if (expected[i] != m[0] || expected[i + 1] != m[1]) continue;
            expected[i] = m[2];
            expected.erase(expected.begin() + static_cast<ptrdiff_t>(i) + 1);
            changed = true;
          }
          if (changed) break;
        }
      }
      for (int again = 0; again < 2; ++again) {  // the second time may use what the first found out
        Ids ids;
        EXPECT_EQ(model.encode(piece, scratch, ids), std::string_view::npos);
        EXPECT_EQ(ids, expected) << piece;
      }
    }
  }
}

TEST(AddedTokenTest, LeftmostThenLongestWins) {
  AddedTokenMatcher matcher;
  matcher.add("ab", 1);
  matcher.add("abcd", 2);
  matcher.add("bcdef", 3);
  AddedTokenMatcher::Match match;
  ASSERT_TRUE(matcher.find("xabcdef", 0, &match));
  EXPECT_EQ(match.id, 2);
  EXPECT_EQ(match.begin, 1u);
  EXPECT_EQ(match.end, 5u);
  ASSERT_TRUE(matcher.find("abcx", 0, &match));  // the longer one fails late: fall back
  EXPECT_EQ(match.id, 1);
  ASSERT_TRUE(matcher.find("abcdef", 1, &match));
  EXPECT_EQ(match.id, 3);
  EXPECT_FALSE(matcher.find("abcdef", 2, &match));
  EXPECT_FALSE(matcher.find("", 0, &match));
}

TEST(TokenizerTest, MergesFollowTheirRanksInsidePieces) {
  const Tokenizer tokenizer =
      make(synthetic_json({{"l", "l"}, {"h", "e"}, {"he", "ll"}, {" ", "he"}}));
  EXPECT_EQ(tokenizer.vocab_size(), 260);
  EXPECT_EQ(tokenizer.encode("hell"), (Ids{258}));
  EXPECT_EQ(tokenizer.encode("hello he"), (Ids{258, 'o', 259}));
  EXPECT_EQ(tokenizer.encode("hel"), (Ids{257, 'l'}));
  EXPECT_EQ(tokenizer.encode("lll"), (Ids{256, 'l'}));
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  EXPECT_EQ(tokenizer.id_to_token(259), "\u0120he");
  EXPECT_EQ(tokenizer.token_to_id("\u0120he").value(), 259);
  EXPECT_EQ(tokenizer.token_bytes(259), " he");
  EXPECT_FALSE(tokenizer.token_to_id("nope").has_value());
}

TEST(TokenizerTest, MergesMayBePairs) {
  Json json = synthetic_json({{"a", "b"}, {"ab", "c"}});
  const Tokenizer strings = make(json);
  json["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({"ab", "c"})});
  const Tokenizer pairs = make(json);
  EXPECT_EQ(strings.encode("abcab"), pairs.encode("abcab"));
  EXPECT_EQ(pairs.encode("abcab"), (Ids{257, 256}));
}

TEST(TokenizerTest, IgnoreMergesTakesWholePieces) {
  Json json = synthetic_json({{"a", "b"}});
  json["model"]["vocab"]["abc"] = 257;  // no merge makes it
  EXPECT_EQ(make(json).encode("abc"), (Ids{256, 'c'}));
  json["model"]["ignore_merges"] = true;
  EXPECT_EQ(make(json).encode("abc"), (Ids{257}));
  EXPECT_EQ(make(json).encode("abcd"), (Ids{256, 'c', 'd'}));
}

TEST(TokenizerTest, AddedTokensAreCutOutFirstUnnormalisedOnesBeforeOthers) {
  Json json = synthetic_json({{"a", "b"}});
  json["added_tokens"] = {added_token(300, "<x>"), added_token(301, "x>y", false, true),
                          added_token(302, "<x>yz")};
  const Tokenizer tokenizer = make(json);
  EXPECT_EQ(tokenizer.encode("ab<x>ab"), (Ids{256, 300, 256}));
  // "x>y" is looked for in the whole text first, so the earlier "<x>" is no longer there.
  EXPECT_EQ(tokenizer.encode("<x>yz"), (Ids{'<', 301, 'z'}));
  EXPECT_EQ(tokenizer.encode("<x><x>"), (Ids{300, 300}));
  EXPECT_TRUE(tokenizer.is_special(301));
  EXPECT_FALSE(tokenizer.is_special(300));
  EXPECT_EQ(tokenizer.decode(Ids{300, 301}), "<x>x>y");
  EXPECT_FALSE(tokenizer.has_id(299));  // a hole
  EXPECT_TRUE(tokenizer.has_id(302));
  expect_error([&] { tokenizer.decode(Ids{299}); }, "no token has the id 299");
  expect_error([&] { tokenizer.decode(Ids{303}); }, "from 0 to 302");
  expect_error([&] { tokenizer.decode(Ids{-1}); }, "-1");
}

TEST(TokenizerTest, TextBetweenAddedTokensIsSplitOnItsOwn) {
  Json json = synthetic_json({{" ", " "}});
  json["added_tokens"] = {added_token(300, "<x>")};
  const Tokenizer tokenizer = make(json);
  // Alone, two spaces before a letter are " " and " a"; before an added token they end a text.
  EXPECT_EQ(tokenizer.encode("  a"), (Ids{' ', ' ', 'a'}));
  EXPECT_EQ(tokenizer.encode("  <x>"), (Ids{256, 300}));
}

TEST(TokenizerTest, DecodeReplacesCutCharactersOnly) {
  const Tokenizer tokenizer = make(synthetic_json({}));
  const Ids ids = tokenizer.encode("\u4e2d");
  EXPECT_EQ(ids, (Ids{0xE4, 0xB8, 0xAD}));
  EXPECT_EQ(tokenizer.decode(ids), "\u4e2d");
  EXPECT_EQ(tokenizer.decode(Ids{0xE4, 0xB8}), "\uFFFD");
  EXPECT_EQ(tokenizer.decode(Ids{0xE4, 'a', 0xAD}),
            "\uFFFD"
            "a\uFFFD");
  EXPECT_EQ(tokenizer.token_bytes(0xE4), "\xE4");
}

TEST(TokenizerTest, RandomTextsRoundTripWithAndWithoutJit) {
  const Json json =
      synthetic_json({{"t", "h"}, {"th", "e"}, {" ", "the"}, {"1", "2"}, {"\n", "\n"}});
  const Tokenizer jit = make(json), interpreter = make(json, false);
  std::mt19937 rng(7);
  const std::vector<std::string> parts = {"the", " ",      "  ",     "\n",     "\r\n",      "12",
                                          "345", "\u4e2d", "\u3042", "e",      "\t",        ".",
                                          "{",   "\u0301", "\u180e", "\u2028", "\U0001F600"};
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (auto n = rng() % 20; n > 0; --n) text += parts[rng() % parts.size()];
    const Ids ids = jit.encode(text);
    ASSERT_EQ(ids, interpreter.encode(text)) << text;
    ASSERT_EQ(jit.decode(ids), text);
  }
}

TEST(TokenizerTest, SeveralThreadsGetTheSameIds) {
  const Json json =
      synthetic_json({{"t", "h"}, {"th", "e"}, {" ", "the"}, {"a", "t"}, {"th", "at"}});
  const std::string text = "the that then that the 123 at hat";
  const Ids expected = make(json).encode(text);
  const Tokenizer tokenizer = make(json);  // fresh: nothing is known about its tokens yet
  ThreadPool pool(4);
  std::vector<Ids> all(64);
  pool.parallel_for(64, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) all[static_cast<size_t>(i)] = tokenizer.encode(text);
  });
  for (const Ids& ids : all) EXPECT_EQ(ids, expected);
}

TEST(TokenizerTest, LongUniformTextsTakeLinearTime) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const std::string c : {"a", " ", "\n", "7", "-"}) {
    for (std::string s = c; s.size() < 64; s += s) merges.emplace_back(s, s);
  }
  const Json json = synthetic_json(merges);
  for (const bool use_jit : {true, false}) {
    const Tokenizer tokenizer = make(json, use_jit);
    for (const char* unit :
         {"a", " ", "\n", "7", "-", "\x01", "\u4e2d", " \t", " a", "\u0301", "<"}) {
      std::string text;
      while (text.size() < 300000) text += unit;
      ASSERT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << unit;
    }
  }
}

TEST(TokenizerTest, TextThatCannotBeEncodedIsRefusedNotDropped) {
  Json json = synthetic_json({});
  json["model"]["vocab"].erase(spell_token_bytes("Z"));
  json["model"]["vocab"].erase(spell_token_bytes("\xB8"));
  const Tokenizer tokenizer = make(json);
  expect_error([&] { tokenizer.encode("abc Zebra"); }, "\"Z\" U+005A at byte 4");
  expect_error([&] { tokenizer.encode("ab \u4e2d"); }, "U+4E2D at byte 3");
  expect_error([&] { tokenizer.encode("a\xFFz"); }, "not UTF-8 at byte 1");
}

TEST(TokenizerTest, UnsupportedComponentsAreNamed) {
  const Json good = synthetic_json({{"a", "b"}});
  const auto expect_refused = [&](const std::string& pointer, const Json& value,
                                  const std::string& part) {
    Json json = good;
    json[Json::json_pointer(pointer)] = value;
    expect_error([&] { make(json); }, part);
    expect_error([&] { make(json); }, "test.json");
  };
  expect_refused("/normalizer", {{"type", "NFC"}}, "normalizer NFC");
  expect_refused("/decoder", {{"type", "Metaspace"}}, "decoder Metaspace");
  expect_refused("/decoder", nullptr, "without a decoder");
  expect_refused("/model/type", "Unigram", "model Unigram");
  expect_refused("/model/dropout", 0.1, "model.dropout");
  expect_refused("/model/unk_token", "<unk>", "model.unk_token");
  expect_refused("/model/continuing_subword_prefix", "##", "continuing_subword_prefix");
  expect_refused("/model/byte_fallback", true, "byte_fallback");
  expect_refused("/model/merges/0", "a x y", "merges[0]");
  expect_refused("/model/merges/0", "a zz", "\"zz\" is not in the vocabulary");
  expect_refused("/model/merges/0", 3, "merges[0]");
  expect_refused("/model/vocab/a", 98, "the same id 98");
  expect_refused("/model/vocab/a", -1, "must be a number");
  expect_refused("/model/vocab/a", 1.5, "must be a number");
  expect_refused("/model/vocab/a", 4000000000u, "must be a number");
  expect_refused("/model/vocab", Json::object(), "empty");
  expect_refused("/model", 3, "\"model\" must be an object");
  expect_refused("/pre_tokenizer", nullptr, "without a pre_tokenizer");
  expect_refused("/pre_tokenizer", {{"type", "Whitespace"}}, "pre_tokenizer Whitespace");
  expect_refused("/pre_tokenizer/pretokenizers/0/behavior", "Removed", "Isolated");
  expect_refused("/pre_tokenizer/pretokenizers/0/invert", true, "Isolated");
  expect_refused("/pre_tokenizer/pretokenizers/0/pattern", {{"Regex", "\\w"}}, "`\\w`");
  expect_refused("/pre_tokenizer/pretokenizers/3/use_regex", true, "use_regex");
  expect_refused("/pre_tokenizer/pretokenizers/3", {{"type", "Punctuation"}}, "Punctuation");
  expect_refused("/pre_tokenizer/pretokenizers", Json::array(), "without ByteLevel");
  Json stripping = added_token(300, "<x>");
  stripping["lstrip"] = true;
  expect_refused("/added_tokens", Json::array({stripping}), "lstrip");
  expect_refused("/added_tokens", Json::array({added_token(5, "<x>")}), "of another token");
  expect_refused("/added_tokens", Json::array({added_token(300, "ab")}),
                 "model.vocab gives it 256");
  expect_refused("/added_tokens", Json::array({added_token(300, "")}), "empty");
  expect_error([] { Tokenizer::from_json("{\"model\":", "half.json"); },
               "half.json: not valid JSON");
  expect_error([] { Tokenizer::from_json("[]", "list.json"); }, "list.json");
}

TEST(TokenizerTest, StringPatternsAreLiteral) {
  Json json = synthetic_json({{"a", "."}, {".", "a"}});
  json["pre_tokenizer"]["pretokenizers"] = {
      {{"type", "Split"}, {"pattern", {{"String", "."}}}, {"behavior", "Isolated"}},
      {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}};
  EXPECT_EQ(make(json).encode("a.a"), (Ids{'a', '.', 'a'}));
}

class TokenizerDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "fathom_tokenizer_" +
                 ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(directory_);
    make_directories(directory_);
    Json json = synthetic_json({});
    json["added_tokens"] = {added_token(256, "<s>"), added_token(257, "</s>"),
                            added_token(258, "<end>")};
    write("tokenizer.json", json);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  void write(const std::string& name, const Json& json) {
    write_file_atomic(join_path(directory_, name), json.dump());
  }
  std::string directory_;
};

TEST_F(TokenizerDirectoryTest, EndTokensComeFromTheFirstFileThatNamesThem) {
  Tokenizer tokenizer = Tokenizer::load(directory_);
  EXPECT_FALSE(tokenizer.special_ids().bos.has_value());
  EXPECT_TRUE(tokenizer.special_ids().eos.empty());

  write("tokenizer_config.json", {{"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}}}});
  tokenizer = Tokenizer::load(directory_);
  EXPECT_EQ(tokenizer.special_ids().bos.value(), 256);
  EXPECT_EQ(tokenizer.special_ids().eos, (Ids{257}));

  write("config.json", {{"eos_token_id", 258}, {"bos_token_id", nullptr}});
  tokenizer = Tokenizer::load(directory_);
  EXPECT_EQ(tokenizer.special_ids().bos.value(), 256);
  EXPECT_EQ(tokenizer.special_ids().eos, (Ids{258}));

  write("generation_config.json", {{"eos_token_id", {257, 258}}, {"bos_token_id", 255}});
  tokenizer = Tokenizer::load(directory_);
  EXPECT_EQ(tokenizer.special_ids().bos.value(), 255);
  EXPECT_EQ(tokenizer.special_ids().eos, (Ids{257, 258}));
  EXPECT_TRUE(tokenizer.is_eos(258));
  EXPECT_FALSE(tokenizer.is_eos(256));
}

TEST_F(TokenizerDirectoryTest, WrongSpecialIdsNameTheirFile) {
  write("generation_config.json", {{"eos_token_id", "one"}});
  expect_error([&] { Tokenizer::load(directory_); }, "generation_config.json: eos_token_id");
  write("generation_config.json", {{"eos_token_id", 1000}});
  expect_error([&] { Tokenizer::load(directory_); }, "eos_token_id 1000 is outside");
  write("generation_config.json", Json::object());
  write("tokenizer_config.json", {{"eos_token", "<nope>"}});
  expect_error([&] { Tokenizer::load(directory_); }, "\"<nope>\" is not in tokenizer.json");
}

TEST_F(TokenizerDirectoryTest, MissingFileNamesTheDirectory) {
  EXPECT_TRUE(has_tokenizer(directory_));
  std::filesystem::remove(join_path(directory_, "tokenizer.json"));
  EXPECT_FALSE(has_tokenizer(directory_));
  expect_error([&] { Tokenizer::load(directory_); }, directory_ + " has no tokenizer.json");
}

TEST(TinyTokenizerTest, AnswersHaveTheLengthsOfTheRecipe) {
  const Tokenizer tokenizer = Tokenizer::load(FATHOM_SOURCE_DIR "/configs/tiny/tokenizer");
  EXPECT_EQ(tokenizer.vocab_size(), 64);
  EXPECT_EQ(tokenizer.special_ids().bos.value(), 0);
  EXPECT_EQ(tokenizer.special_ids().eos, (Ids{1}));
  for (int32_t id = 0; id < 64; ++id) EXPECT_TRUE(tokenizer.has_id(id)) << id;
  const std::string end =
      "<\uFF5C"
      "end\u2581of\u2581sentence\uFF5C>";
  EXPECT_EQ(tokenizer.encode("14,19,26\\boxed{26}" + end).size(), 13u);
  const Ids guess = tokenizer.encode("\\boxed{24}" + end);
  EXPECT_EQ(guess.size(), 5u);
  EXPECT_EQ(guess.back(), 1);
  EXPECT_EQ(tokenizer.encode("8+6+5+7=").size(), 8u);
  EXPECT_EQ(tokenizer.decode(guess), "\\boxed{24}" + end);
  expect_error([&] { tokenizer.encode("Sum"); }, "\"S\" U+0053");
}

}  // namespace
}  // namespace fathom
