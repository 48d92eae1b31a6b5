// One regular expression of a tokenizer's pre-tokenizer, run by PCRE2 with the meaning that the
// `tokenizers` library (Oniguruma, Ruby syntax, Unicode) gives it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace fathom {

struct TextRange {
  size_t begin, end;  // bytes
};

/// Rewrites an Oniguruma pattern for PCRE2. Only constructs are let through that mean the same in
/// both, or can be rewritten so that they do: \s is spelled out, because PCRE2's also matches
/// U+180E. Errors: UserError that names the construct (anchors, \w, \b, script names, nested or
/// intersected classes, inline flags, back-references).
std::string pcre2_pattern_of(std::string_view oniguruma_pattern);

class SplitRegex {
 public:
  /// @param use_jit off: the interpreter, same results, slower. A PCRE2 built without a JIT uses it
  ///        anyway.
  /// Errors: UserError for a pattern that cannot be compiled, is not supported (see above) or
  ///         matches the empty string.
  explicit SplitRegex(std::string_view pattern, bool use_jit = true);
  ~SplitRegex();
  SplitRegex(SplitRegex&&) noexcept;
  SplitRegex& operator=(SplitRegex&&) noexcept;

  /// What a search needs besides the pattern. One a thread; making it is cheap.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class SplitRegex;
    void* match_data_;
    void* context_;
  };

  /// The first match at or after byte `start`. `text` must be well-formed UTF-8 and is a whole of
  /// its own: nothing outside it is seen by look-around. False: no match.
  /// Errors: UserError when PCRE2 gives up (memory), with its reason.
  bool find(std::string_view text, size_t start, Scratch& scratch, TextRange* match) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
