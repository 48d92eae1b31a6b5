#define PCRE2_CODE_UNIT_WIDTH 8
#include "fathom/tokenizer/split_regex.h"

#include <pcre2.h>

#include <cstdint>

#include "fathom/base/error.h"

namespace fathom {
namespace {

// Unicode's White_Space, which is Oniguruma's \s: the separators plus these controls.
constexpr std::string_view kSpaceMembers = "\\p{Z}\\t-\\r\\x{85}";

bool is_ascii_punctuation(char c) {
  return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) ||
         (c >= 0x7B && c <= 0x7E);
}

class Rewriter {
 public:
  explicit Rewriter(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      switch (c) {
        case '\\':
          escape(/*in_class=*/false);
          break;
        case '[':
          character_class();
          break;
        case '(':
          group();
          break;
        case '{':
          counted_repeat();
          break;
        case '^':
        case '$':
          refuse(std::string(1, c), "anchors");
          break;
        default:
          out_.push_back(c);
          ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& construct, const std::string& kind) const {
    throw UserError(str_cat("pre-tokenizer pattern: `", construct, "` at byte ", at_, " (", kind,
                            ") is not supported\n  got: ", in_,
                            "\n  fix: use a tokenizer.json in the style of DeepSeek-V4's"));
  }

  void copy(size_t count) {
    out_.append(in_.substr(at_, count));
    at_ += count;
  }

  void escape(bool in_class) {
    if (at_ + 1 >= in_.size()) refuse("\\", "a lone backslash");
    const char c = in_[at_ + 1];
    switch (c) {
      case 's':
        // Spelled out it is several members, which cannot be an end of a range.
        if (in_class && (in_.substr(at_ + 2, 1) == "-" || (at_ > 0 && in_[at_ - 1] == '-'))) {
          refuse("\\s", "next to a hyphen inside a class");
        }
        out_.append(in_class ? str_cat(kSpaceMembers) : str_cat("[", kSpaceMembers, "]"));
        at_ += 2;
        return;
      case 'S':
        if (in_class) refuse("\\S", "a negated class inside a class");
        out_.append(str_cat("[^", kSpaceMembers, "]"));
        at_ += 2;
        return;
      case 'p':
      case 'P':
        property();
        return;
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
        copy(2);
        return;
      default:
        if (!is_ascii_punctuation(c)) refuse(str_cat("\\", c), "an escape");
        copy(2);
    }
  }

  // \p{L}, \P{Lu}: general categories only. Script names differ (PCRE2 goes by script extensions).
  void property() {
    const size_t close = in_.find('}', at_);
    const std::string_view name = close == std::string_view::npos || in_.substr(at_ + 2, 1) != "{"
                                      ? std::string_view()
                                      : in_.substr(at_ + 3, close - at_ - 3);
    const bool category = (name.size() == 1 || name.size() == 2) &&
                          std::string_view("CLMNPSZ").find(name[0]) != std::string_view::npos &&
                          (name.size() == 1 || (name[1] >= 'a' && name[1] <= 'z'));
    if (!category) refuse(std::string(in_.substr(at_, 12)), "not a general category");
    copy(close + 1 - at_);
  }

  void character_class() {
    copy(1);
    if (in_.substr(at_, 1) == "^") copy(1);
    if (in_.substr(at_, 1) == "]") refuse("[]", "an empty class");
    for (;;) {
      if (at_ >= in_.size()) refuse("[", "a class without end");
      const char c = in_[at_];
      if (c == ']') break;
      if (c == '[') refuse("[", "a class inside a class");
      if (in_.substr(at_, 2) == "&&") refuse("&&", "an intersection of classes");
      if (c == '\\') {
        escape(/*in_class=*/true);
      } else {
        copy(1);
      }
    }
    copy(1);
  }

  void group() {
    if (in_.substr(at_, 2) == "(?") {
      for (const std::string_view open : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
        if (in_.substr(at_, open.size()) == open) return copy(open.size());
      }
      refuse(std::string(in_.substr(at_, 4)), "a kind of group");
    }
    if (in_.substr(at_, 2) == "(*") refuse("(*", "a verb");
    copy(1);
  }

  // {n}, {n,}, {n,m}. A following ? or + means different things in the two syntaxes.
  void counted_repeat() {
    size_t end = at_ + 1;
    const auto digits = [&] {
      const size_t from = end;
      while (end < in_.size() && in_[end] >= '0' && in_[end] <= '9') ++end;
      return end > from;
    };
    bool good = digits();
    if (end < in_.size() && in_[end] == ',') {
      ++end;
      digits();
    }
    good = good && end < in_.size() && in_[end] == '}';
    if (!good) refuse("{", "a brace that is not a repeat; write \\{");
    if (in_.substr(end + 1, 1) == "?" || in_.substr(end + 1, 1) == "+") {
      refuse(std::string(in_.substr(at_, end + 2 - at_)), "a lazy or possessive counted repeat");
    }
    copy(end + 1 - at_);
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(code, text, sizeof(text)) < 0) return str_cat("error ", code);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

std::string pcre2_pattern_of(std::string_view oniguruma_pattern) {
  return Rewriter(oniguruma_pattern).run();
}

struct SplitRegex::Impl {
  std::string pattern;  // as given, for messages
  pcre2_code* code = nullptr;
  bool has_jit = false;
  ~Impl() { pcre2_code_free(code); }
};

SplitRegex::SplitRegex(std::string_view pattern, bool use_jit) : impl_(std::make_unique<Impl>()) {
  impl_->pattern = pattern;
  const std::string rewritten = pcre2_pattern_of(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);  // what `.` leaves out
  impl_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                              PCRE2_UTF | PCRE2_UCP, &error, &offset, context);
  pcre2_compile_context_free(context);
  FATHOM_CHECK(impl_->code != nullptr, "pre-tokenizer pattern: ", pcre2_message(error),
               "\n  got: ", pattern);
  uint32_t matches_empty = 0;
  pcre2_pattern_info(impl_->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  FATHOM_CHECK(matches_empty == 0, "pre-tokenizer pattern: it can match the empty string",
               "\n  got: ", pattern);
  impl_->has_jit = use_jit && pcre2_jit_compile(impl_->code, PCRE2_JIT_COMPLETE) == 0;
}

SplitRegex::~SplitRegex() = default;
SplitRegex::SplitRegex(SplitRegex&&) noexcept = default;
SplitRegex& SplitRegex::operator=(SplitRegex&&) noexcept = default;

SplitRegex::Scratch::Scratch()
    : match_data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  FATHOM_ASSERT(match_data_ != nullptr && context_ != nullptr, "out of memory for PCRE2");
  // The default limit counts backtracking steps and a megabyte of spaces exceeds it honestly.
  pcre2_set_match_limit(static_cast<pcre2_match_context*>(context_), UINT32_MAX);
}

SplitRegex::Scratch::~Scratch() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(match_data_));
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
}

bool SplitRegex::find(std::string_view text, size_t start, Scratch& scratch,
                      TextRange* match) const {
  auto* data = static_cast<pcre2_match_data*>(scratch.match_data_);
  auto* context = static_cast<pcre2_match_context*>(scratch.context_);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  int rc = PCRE2_ERROR_JIT_STACKLIMIT;
  if (impl_->has_jit) {
    rc = pcre2_jit_match(impl_->code, subject, text.size(), start, 0, data, context);
  }
  // The interpreter keeps its backtracking points on the heap, so depth costs memory, not a crash.
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    rc = pcre2_match(impl_->code, subject, text.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                     data, context);
  }
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  FATHOM_CHECK(rc >= 0, "pre-tokenizer pattern: ", pcre2_message(rc), " in a text of ", text.size(),
               " bytes\n  pattern: ", impl_->pattern, "\n  fix: split the text into shorter ones");
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data);
  *match = {ends[0], ends[1]};
  return true;
}

}  // namespace fathom
