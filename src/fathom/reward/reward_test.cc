#include "fathom/reward/reward.h"

#include <gtest/gtest.h>

#include "fathom/base/error.h"
#include "fathom/reward/math_grader.h"

namespace fathom {
namespace {

TEST(MathGraderTest, TheLastBoxedAnswerOfTheWholeResponseCounts) {
  EXPECT_TRUE(math_answer_is_correct("14,19,26\\boxed{26}", "26"));
  EXPECT_TRUE(math_answer_is_correct("\\boxed{24} no, \\boxed{26}", "26"));
  EXPECT_FALSE(math_answer_is_correct("\\boxed{26} no, \\boxed{24}", "26"));
  EXPECT_TRUE(math_answer_is_correct("<think>\\boxed{26}</think>", "26"));
}

TEST(MathGraderTest, NothingBoxedUnbalancedOrBracelessIsWrong) {
  EXPECT_FALSE(math_answer_is_correct("26", "26"));
  EXPECT_FALSE(math_answer_is_correct("\\boxed{26", "26"));
  EXPECT_FALSE(math_answer_is_correct("\\boxed 26", "26"));
  EXPECT_FALSE(math_answer_is_correct("", "26"));
  EXPECT_FALSE(math_answer_is_correct("\\boxed{26}", ""));
  EXPECT_FALSE(math_answer_is_correct("\\boxed{}", "26"));
}

TEST(MathGraderTest, NestedBracesAreMatched) {
  EXPECT_EQ(last_boxed_answer("x \\boxed{\\frac{1}{2}} y").value(), "\\frac{1}{2}");
  EXPECT_TRUE(math_answer_is_correct("\\boxed{\\frac12}", "1/2"));
  EXPECT_TRUE(math_answer_is_correct("\\boxed{\\dfrac{1}{2}}", "0.5"));
}

TEST(MathGraderTest, IntegersAreEqualHoweverTheyAreWritten) {
  for (const char* given : {"1,234", "1234.0", " 1234 ", "\\$1234", "1234\\%", "x=1234", "01234",
                            "\\text{1234}", "1234^\\circ", "1,\\!234"}) {
    EXPECT_TRUE(math_answer_is_correct(std::string("\\boxed{") + given + "}", "1234")) << given;
  }
  for (const char* given : {"1235", "-1234", "123", "1234.5", "12345", "1234x"}) {
    EXPECT_FALSE(math_answer_is_correct(std::string("\\boxed{") + given + "}", "1234")) << given;
  }
}

TEST(MathGraderTest, TuplesAreComparedElementByElementWithTheirBrackets) {
  EXPECT_TRUE(math_answer_is_correct("\\boxed{(1, 2)}", "(1,2)"));
  EXPECT_TRUE(math_answer_is_correct("\\boxed{(1.0, 2)}", "(1,2)"));
  EXPECT_FALSE(math_answer_is_correct("\\boxed{[1.0, 2)}", "(1,2)"));
  EXPECT_FALSE(math_answer_is_correct("\\boxed{(1,2,3)}", "(1,2)"));
}

TEST(MathGraderTest, ABoxedLabelStandsForItsContent) {
  EXPECT_TRUE(math_answer_is_correct("\\boxed{7}", "so \\boxed{7}"));
}

TEST(RewardTest, AnUnknownTypeIsRefusedByName) {
  EXPECT_EQ(compute_reward(parse_reward_type("math"), "\\boxed{3}", "3"), 1.0);
  try {
    parse_reward_type("maths");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("maths"), std::string::npos);
  }
}

}  // namespace
}  // namespace fathom
