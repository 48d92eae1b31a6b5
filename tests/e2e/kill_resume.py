"""A run that is killed at random moments ends with the bits of one that was left alone.

usage: kill_resume.py PATH_TO_FATHOM [--kills N] [--steps N] [--eval-prompts N] [--seed S] [--watch FOLDER] [--full]

One reference run of the tiny recipe; then the same command under SIGKILL, restarted until it is done. Every
second kill waits until a file of the run (with --watch: of that folder) is being written, the others come at a random moment of anything
that the command does: copying, casting, converting, evaluating, training. The run's directory must then hold the
same bytes as the reference: last checkpoint (weights, optimizer, cursors), answers, metrics but for times.
The same comparison for a run with one thread, with two, and with the AVX2 kernels.

--full is the recipe as it ships: 60 steps, all held-out prompts. Needs Python's standard library alone.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from program import Checks, environment, read_lines, tiny_run, work_directory  # noqa: E402


class Command:
    """The command under test, always the same words for one run id."""

    def __init__(self, fathom, work, args):
        self.fathom, self.work, self.args = fathom, work, args

    def words(self, run_id, **extra):
        settings = {"threads": 2, **extra}
        if self.args.full:
            settings["eval-interval"] = 10
            settings["save-interval"] = 5
            settings["eval-prompt-data"] = ["digit_sum", os.path.join(self.work, "data", "digit_sum", "heldout.jsonl")]
        else:
            settings["eval-prompt-data"] = [
                "digit_sum", os.path.join(self.work, "data", "digit_sum", f"heldout.jsonl@[0:{self.args.eval_prompts}]")]
        steps = 60 if self.args.full else self.args.steps
        return [self.fathom, *tiny_run(self.work, run_id, num_rollout=steps, **settings)]

    def start(self, run_id, log, **extra):
        return subprocess.Popen(self.words(run_id, **extra), stdout=log, stderr=subprocess.STDOUT, env=environment())

    def run(self, run_id, **extra):
        """To the end; returns the seconds it took."""
        path = os.path.join(self.work, f"{run_id}.log")
        start = time.monotonic()
        with open(path, "w", encoding="utf-8") as log:
            process = self.start(run_id, log, **extra)
            if process.wait() != 0:
                sys.exit(f"run {run_id} ended with {process.returncode}:\n{tail(path)}")
        return time.monotonic() - start

    def run_directory(self, run_id):
        return os.path.join(self.work, "runs", run_id)


def tail(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()[-3000:]


def is_writing(run_directory, folders):
    """Whether something half-written lies in these folders of the run at this moment."""
    for folder in folders:
        try:
            if any(name.endswith((".partial", ".tmp")) for name in os.listdir(os.path.join(run_directory, folder))):
                return True
        except FileNotFoundError:
            pass
    return False


def kill_at(process, seconds, run_directory=None, folders=()):
    """SIGKILL after `seconds`, or at the first write that is seen after that; False when it ended before."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() >= deadline and (run_directory is None or is_writing(run_directory, folders)):
            process.kill()
            process.wait()
            return True
        time.sleep(0.0003)
    return False


def file_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def tree(path):
    return {os.path.relpath(os.path.join(directory, name), path)
            for directory, _, names in os.walk(path) for name in names}


def metrics_without_times(path):
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in read_lines(path)]


def compare_runs(checks, what, reference, got):
    """Bytes of everything that a run leaves, but for its log, its events and its own name."""
    for folder in ("checkpoints", "rollout", "eval"):
        a, b = os.path.join(reference, folder), os.path.join(got, folder)
        names = tree(a)
        checks.that(names and tree(b) == names, f"{what}: other files in {folder}: {sorted(tree(b) ^ names)[:5]}")
        for name in sorted(names & tree(b)):
            checks.that(file_bytes(os.path.join(a, name)) == file_bytes(os.path.join(b, name)),
                        f"{what}: {folder}/{name} differs")
    names = set(os.listdir(reference))
    checks.that(set(os.listdir(got)) == names, f"{what}: other files: {sorted(set(os.listdir(got)) ^ names)}")
    a, b = (metrics_without_times(os.path.join(path, "metrics.jsonl")) for path in (reference, got))
    checks.that(a == b, f"{what}: metrics.jsonl differs: steps {[line['step'] for line in b]}")
    differences = [line["train/train_rollout_logprob_abs_diff"] for line in b if line["step"] >= 0]
    checks.that(differences and not any(differences), f"{what}: log-prob differences {differences}")


def check_kills(checks, command, args, reference, duration):
    """All kills together take less than the run's length, so that one run mostly gets them all; a run that
    ends before is compared too, and the next one gets the rest."""
    rng = random.Random(args.seed)
    folders = ("", "checkpoints", "rollout", "eval") if args.watch is None else (args.watch,)
    kills, watched_kills, attempt, run = 0, 0, 0, 0
    while kills < args.kills:
        run_id = f"killed{run}"
        shutil.rmtree(os.path.join(command.work, "models"), ignore_errors=True)
        path = os.path.join(command.work, f"{run_id}.log")
        done = False
        with open(path, "w", encoding="utf-8") as log:
            while not done:
                attempt += 1
                process = command.start(run_id, log)
                if kills >= args.kills:
                    process.wait()
                else:
                    delay = rng.uniform(0, 1.5 * duration / (args.kills + 1))
                    watched = command.run_directory(run_id) if attempt % 2 == 0 else None
                    killed = kill_at(process, delay, watched, folders)
                    kills += killed
                    watched_kills += killed and watched is not None
                done = process.returncode == 0
                if not done and process.returncode != -9:
                    sys.exit(f"after {kills} kills {run_id} ended with {process.returncode}:\n{tail(path)}")
        compare_runs(checks, f"{run_id}, {kills} kills in all", reference, command.run_directory(run_id))
        run += 1
    print(f"{kills} kills in {attempt} lives of {run} run(s), {watched_kills} of them while a file was being written", flush=True)


def check_config_kept(checks, run_directory):
    """The resolved options are in the run directory, whole."""
    with open(os.path.join(run_directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    checks.that("options" in config, "config.json of the run holds no options")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--eval-prompts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watch", metavar="FOLDER", help="of the run, e.g. checkpoints")
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    checks = Checks()
    with work_directory("kill_resume") as work:
        command = Command(args.fathom, work, args)
        duration = command.run("reference")
        reference = command.run_directory("reference")
        print(f"reference run: {duration:.1f} s", flush=True)
        check_config_kept(checks, reference)
        check_kills(checks, command, args, reference, duration)
        for run_id, extra in (("one_thread", {"threads": 1}), ("avx2", {"cpu-kernels": "avx2"})):
            seconds = command.run(run_id, **extra)
            compare_runs(checks, run_id, reference, command.run_directory(run_id))
            print(f"{run_id}: {seconds:.1f} s", flush=True)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
