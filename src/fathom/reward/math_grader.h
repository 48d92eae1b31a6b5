// The `math` reward: is the boxed answer of a response the label?
//
// The answer is the content of the last \boxed{...} of the whole response, braces matched; without
// any \boxed the last \fbox is looked at, which the published rule then refuses as it is not of the
// form \boxed{...}; \boxed without a brace does not count. It is accepted when its normal form
// equals the label's: first the form of the MATH benchmark (fractions, units, percent signs,
// spaces), then a form that compares numbers (thousands commas, trailing zeros), element by element
// for tuples. Integers are exact; there is no computer algebra, so an expression is equal only when
// it is written alike.
#pragma once

#include <optional>
#include <string>

namespace fathom {

/// Content of the last boxed answer, or nothing.
std::optional<std::string> last_boxed_answer(const std::string& text);

/// Normal form after the MATH benchmark's rules, in their order.
std::string normalize_math_answer(const std::string& answer);

/// An empty label is never matched. A label that itself holds \boxed{...} stands for its content.
bool math_answer_is_correct(const std::string& response, const std::string& label);

}  // namespace fathom
