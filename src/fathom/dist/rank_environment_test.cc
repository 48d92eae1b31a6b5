#include "fathom/dist/rank_environment.h"

#include <gtest/gtest.h>

#include "fathom/base/error.h"

namespace fathom::dist {
namespace {

using Variables = std::map<std::string, std::string>;

TEST(RankEnvironment, AloneWithoutVariables) {
  const RankEnvironment e = rank_environment({});
  EXPECT_EQ(e.rank, 0);
  EXPECT_EQ(e.size, 1);
  EXPECT_EQ(e.launcher, "");
}

TEST(RankEnvironment, Torchrun) {
  const Variables variables = {{"RANK", "5"},
                               {"WORLD_SIZE", "8"},
                               {"LOCAL_RANK", "1"},
                               {"LOCAL_WORLD_SIZE", "4"},
                               {"MASTER_ADDR", "10.0.0.7"},
                               {"MASTER_PORT", "29500"},
                               {"TORCHELASTIC_RUN_ID", "job7"}};
  RankEnvironment e = rank_environment(variables);
  EXPECT_EQ(e.rank, 5);
  EXPECT_EQ(e.size, 8);
  EXPECT_EQ(e.local_rank, 1);
  EXPECT_EQ(e.local_size, 4);
  EXPECT_EQ(e.master_host, "10.0.0.7");
  EXPECT_EQ(e.master_port, 29500);
  EXPECT_EQ(e.secret, "job7");
  Variables agent = variables;
  agent.emplace("TORCHELASTIC_USE_AGENT_STORE", "True");
  agent.emplace("FATHOM_RANKS_SECRET", "s");
  e = rank_environment(agent);
  EXPECT_EQ(e.master_port, 29501);
  EXPECT_EQ(e.secret, "s");
}

TEST(RankEnvironment, SlurmStep) {
  const Variables variables = {{"SLURM_PROCID", "3"},
                               {"SLURM_NTASKS", "16"},
                               {"SLURM_STEP_NUM_TASKS", "8"},
                               {"SLURM_LOCALID", "3"},
                               {"SLURM_STEP_ID", "0"},
                               {"SLURM_JOB_ID", "4711"},
                               {"SLURM_STEP_NODELIST", "gpu[07-08]"},
                               {"SLURM_STEP_TASKS_PER_NODE", "4(x2)"}};
  const RankEnvironment e = rank_environment(variables);
  EXPECT_EQ(e.rank, 3);
  EXPECT_EQ(e.size, 8);
  EXPECT_EQ(e.local_size, 4);
  EXPECT_EQ(e.master_host, "gpu07");
  EXPECT_GE(e.master_port, 20'000);
  EXPECT_LT(e.master_port, 30'000);
  Variables other = variables;
  other.insert_or_assign("SLURM_PROCID", "7");
  EXPECT_EQ(rank_environment(other).master_port, e.master_port);
  other.emplace("MASTER_PORT", "1234");
  EXPECT_EQ(rank_environment(other).master_port, 1234);
  // A batch script is one process, whatever the job has.
  const Variables script = {
      {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}, {"SLURM_STEPID", "4294967291"}};
  EXPECT_EQ(rank_environment(script).size, 1);
  Variables batch = variables;
  batch.insert_or_assign("SLURM_STEP_ID", "batch");
  EXPECT_EQ(rank_environment(batch).size, 1);
}

TEST(RankEnvironment, SaysWhatDoesNotFit) {
  for (const Variables& variables : {Variables{{"RANK", "0"}}, Variables{{"WORLD_SIZE", "2"}},
                                     Variables{{"RANK", "2"}, {"WORLD_SIZE", "2"}},
                                     Variables{{"RANK", "x"}, {"WORLD_SIZE", "2"}},
                                     Variables{{"SLURM_PROCID", "2"}, {"SLURM_NTASKS", "2"}}}) {
    EXPECT_THROW(rank_environment(variables), ConfigError);
  }
}

TEST(RankEnvironment, FirstHost) {
  EXPECT_EQ(first_host("node1"), "node1");
  EXPECT_EQ(first_host("node1,node2"), "node1");
  EXPECT_EQ(first_host("node[03-07,12],other"), "node03");
  EXPECT_EQ(first_host("n[5]"), "n5");
}

}  // namespace
}  // namespace fathom::dist
