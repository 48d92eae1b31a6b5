"""The tiny recipe on several ranks that share the model, from the command line.

usage: layouts.py PATH_TO_FATHOM [--kills N] [--steps N] [--seed S] [--full]

For each layout a run of `full-train` next to that of one rank: the first step has the same answers and loss, the
trainer's and the rollout's log-probs never differ, and the weights stay near one rank's. A run that is stopped after
a checkpoint goes on under other layouts. Then random ranks are killed at random moments: all processes are gone
within 30 seconds with one message that names the rank, and the run, started again, ends with the bytes of one that
was left alone. --full runs the recipe to its end and compares the accuracy that it reaches. Needs Python's standard
library alone.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from program import Checks, environment, read_lines, run_ok, tiny_run, work_directory  # noqa: E402
from ranks import children_of, is_alive  # noqa: E402

ONE = {"threads": 1}
LAYOUTS = {
    "tp2_ep2": {"num-procs": 4, "tensor-model-parallel-size": 2, "expert-model-parallel-size": 2, "threads": 1},
    "pp2_dp2": {"num-procs": 4, "pipeline-model-parallel-size": 2, "threads": 1},
}
TWO = {"num-procs": 2, "tensor-model-parallel-size": 2, "sequence-parallel": [], "threads": 1}


class Runs:
    def __init__(self, fathom, work, args):
        self.fathom, self.work, self.args = fathom, work, args

    def words(self, run_id, layout, **more):
        settings = {"eval-interval": 3, "save-interval": 1, **layout, **more}
        if self.args.full:
            settings.update({"eval-interval": 20, "save-interval": 20, "eval-prompt-data": [
                "digit_sum", os.path.join(self.work, "data", "digit_sum", "heldout.jsonl")]})
        return tiny_run(self.work, run_id, self.args.steps, **settings)

    def directory(self, run_id):
        return os.path.join(self.work, "runs", run_id)

    def metrics(self, run_id):
        return read_lines(os.path.join(self.directory(run_id), "metrics.jsonl"))

    def steps(self, run_id):
        return [line for line in self.metrics(run_id) if line["step"] >= 0]

    def last_checkpoint(self, run_id):
        """{file: bytes} of it."""
        checkpoints = os.path.join(self.directory(run_id), "checkpoints")
        newest = max(name for name in os.listdir(checkpoints) if name.startswith("iter_"))
        found = {}
        for folder, _, files in os.walk(os.path.join(checkpoints, newest)):
            for name in files:
                with open(os.path.join(folder, name), "rb") as file:
                    found[os.path.relpath(os.path.join(folder, name), checkpoints)] = file.read()
        return found


def check_layouts(runs, checks):
    run_ok(runs.fathom, *runs.words("one", ONE), timeout=600)
    one = runs.steps("one")
    for name, layout in LAYOUTS.items():
        run_ok(runs.fathom, *runs.words(name, layout), timeout=600)
        many = runs.steps(name)
        checks.that(len(many) == len(one), f"{name}: {len(many)} steps, one rank {len(one)}")
        for metric in ("rollout/raw_reward", "rollout/response_lengths", "train/loss"):
            checks.that(many[0][metric] == one[0][metric],
                        f"{name}: {metric} of the first step is {many[0][metric]}, one rank's {one[0][metric]}")
        differences = [line["train/train_rollout_logprob_abs_diff"] for line in many]
        checks.that(not any(differences), f"{name}: trainer and rollout differ by {differences}")
        norm, ours = one[0]["train/grad_norm"], many[0]["train/grad_norm"]
        checks.that(abs(ours - norm) <= 1e-5 * norm, f"{name}: gradient norm {ours}, one rank's {norm}")
        accuracy = [line["eval/digit_sum"] for line in (runs.metrics("one") + runs.metrics(name)) if "eval/digit_sum" in line]
        if runs.args.full:
            reached = runs.steps(name)[-1]["eval/digit_sum"]
            of_one = one[-1]["eval/digit_sum"]
            print(f"{name}: held-out accuracy {reached:.3f}, one rank {of_one:.3f}", flush=True)
            checks.that(reached >= 0.9 and of_one >= 0.9, f"{name}: accuracy {reached}, one rank {of_one}")
        checks.that(accuracy, f"{name}: nothing was evaluated")


def check_other_layouts(runs, checks):
    stop = 2
    for name, layout in LAYOUTS.items():
        cut = f"cut_{name}"
        run_ok(runs.fathom, *runs.words(cut, layout, **{"debug-exit-after-rollout": stop}), timeout=600)
        for other, rest in (("one", ONE), ("two", TWO)):
            copy = f"{cut}_{other}"
            shutil.copytree(runs.directory(cut), runs.directory(copy))
            run_ok(runs.fathom, *runs.words(copy, rest), timeout=600)
            steps, whole = runs.steps(copy), runs.steps(name)
            checks.that(len(steps) == len(whole), f"{copy}: {len(steps)} steps in place of {len(whole)}")
            for metric in ("rollout/raw_reward", "train/loss"):
                checks.that(steps[stop][metric] == whole[stop][metric],
                            f"{copy}: {metric} of the step behind the checkpoint is {steps[stop][metric]}, not {whole[stop][metric]}")
            differences = [line["train/train_rollout_logprob_abs_diff"] for line in steps]
            checks.that(not any(differences), f"{copy}: trainer and rollout differ by {differences}")


def kill_once(runs, run_id, layout, dice, checks):
    """Starts the run and kills one of its ranks. @return whether it was done before that."""
    process = subprocess.Popen([runs.fathom, *runs.words(run_id, layout)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, encoding="utf-8", env=environment())
    ranks = layout["num-procs"]
    deadline = time.monotonic() + 60
    while len(pids := children_of(process.pid)) < ranks and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        process.wait(dice.uniform(0.2, 4.0))
        process.communicate()
        return True
    except subprocess.TimeoutExpired:
        pass
    victim = dice.randrange(len(pids))
    os.kill(pids[victim], signal.SIGKILL)
    start = time.monotonic()
    try:
        _, said = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        checks.that(False, f"{run_id}: ranks were still there after 30 s")
        return False
    if process.returncode == 0:
        return True  # it had ended just then
    errors = [line for line in said.splitlines() if "error:" in line]
    checks.that(len(errors) == 1 and re.search(rf"rank {victim} was ended by signal 9", errors[0]),
                f"{run_id}: rank {victim} was killed, said {errors} in {said[-600:]}")
    checks.that(not any(map(is_alive, pids)), f"{run_id}: ranks outlived the supervisor")
    print(f"{run_id}: rank {victim} killed, all gone after {time.monotonic() - start:.2f} s", flush=True)
    return False


def check_kills(runs, checks, kills, dice):
    num_killed = number = 0
    while num_killed < kills:
        name = list(LAYOUTS)[number % len(LAYOUTS)]
        run_id = f"killed_{name}_{number}"
        number += 1
        while num_killed < kills and not kill_once(runs, run_id, LAYOUTS[name], dice, checks):
            num_killed += 1
        run_ok(runs.fathom, *runs.words(run_id, LAYOUTS[name]), timeout=600)
        ours, whole = runs.last_checkpoint(run_id), runs.last_checkpoint(name)
        other = [file for file in whole if ours.get(file) != whole[file]]
        checks.that(ours.keys() == whole.keys() and not other, f"{run_id}: other bytes in {other}")
    print(f"{num_killed} kills in {number} runs", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    args.steps = args.steps or (60 if args.full else 4)
    checks = Checks()
    with work_directory("layouts") as work:
        runs = Runs(args.fathom, work, args)
        check_layouts(runs, checks)
        if not args.full:
            check_other_layouts(runs, checks)
            check_kills(runs, checks, args.kills, random.Random(args.seed))
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
