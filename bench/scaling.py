"""Two ranks of one thread each beside one rank of two threads: the tiny recipe's step in every way to share it.

usage: scaling.py PATH_TO_FATHOM [--steps N] [--repeats R] [--keep DIR]

Each layout runs `train` of the tiny recipe for N steps with --trace-rollouts; printed are the medians of a step's
rollout and training time over all repeats, the first step of each left out, and the share of the time that the first
rank spent sending and waiting, read from the trace. --keep leaves the traces, which open in ui.perfetto.dev. Needs
Python's standard library alone.
"""

import argparse
import json
import os
import shutil
import statistics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "interop"))
from program import read_lines, run_ok, tiny_run, work_directory  # noqa: E402

LAYOUTS = {
    "one rank, 2 threads": {"threads": 2},
    "one rank, 1 thread": {"threads": 1},
    "DP2": {"threads": 1, "num-procs": 2},
    "TP2": {"threads": 1, "num-procs": 2, "tensor-model-parallel-size": 2},
    "TP2 SP": {"threads": 1, "num-procs": 2, "tensor-model-parallel-size": 2, "sequence-parallel": []},
    "EP2": {"threads": 1, "num-procs": 2, "expert-model-parallel-size": 2},
    "CP2": {"threads": 1, "num-procs": 2, "context-parallel-size": 2},
    "PP2": {"threads": 1, "num-procs": 2, "pipeline-model-parallel-size": 2},
}


def communication_share(path):
    """Of the first rank's time in phases, what it spent in messages and collectives."""
    with open(path, encoding="utf-8") as file:
        spans = [e for e in json.load(file)["traceEvents"] if e["ph"] == "X" and e["pid"] == 0]
    total = {"phase": 0.0, "communication": 0.0}
    for span in spans:
        total[span["cat"]] += span["dur"]
    sent = sum(span["args"]["bytes"] for span in spans if span["cat"] == "communication")
    return total["communication"] / total["phase"], sent


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep")
    args = parser.parse_args()
    rows = {name: {"rollout": [], "train": [], "share": [], "sent": []} for name in LAYOUTS}
    with work_directory("scaling") as work:
        for repeat in range(args.repeats):
            for name, options in LAYOUTS.items():  # turn by turn, so that a busy machine is one for all
                run_id = f"{name}-{repeat}".replace(" ", "_").replace(",", "")
                words = tiny_run(work, run_id, args.steps, **options, **{
                    "trace-rollouts": args.steps, "skip-eval-before-train": [], "eval-interval": 1000,
                    "skip-saving": []})
                run_ok(args.fathom, *words)
                directory = os.path.join(work, "runs", run_id)
                for line in read_lines(os.path.join(directory, "metrics.jsonl"))[1:]:
                    if "perf/rollout_time" in line:
                        rows[name]["rollout"].append(line["perf/rollout_time"])
                        rows[name]["train"].append(line["perf/actor_train_time"])
                share, sent = communication_share(os.path.join(directory, "trace.json"))
                rows[name]["share"].append(share)
                rows[name]["sent"].append(sent / args.steps)
                if args.keep:
                    os.makedirs(args.keep, exist_ok=True)
                    shutil.copy(os.path.join(directory, "trace.json"), os.path.join(args.keep, f"{run_id}.json"))
    base = statistics.median(rows["one rank, 2 threads"]["rollout"]) + \
        statistics.median(rows["one rank, 2 threads"]["train"])
    print("| layout | rollout ms | training ms | against one rank with 2 threads | in communication | MB sent a step |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        rollout, train = statistics.median(row["rollout"]), statistics.median(row["train"])
        print(f"| {name} | {rollout * 1e3:.0f} | {train * 1e3:.0f} | {base / (rollout + train):.2f}x "
              f"| {100 * statistics.median(row['share']):.0f} % | {statistics.median(row['sent']) / 1e6:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
