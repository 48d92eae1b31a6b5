"""Conversions that are killed at random instants end with the bytes of one that was left alone.

usage: convert_kills.py PATH_TO_FATHOM [--kills N] [--seed S]

Conversions of one FP4 and FP8 model: prepare-single, prepare-spmd by one process, by three and by three that a
launcher starts one after the other, export-hf over the original. Each is started again and again, and killed with its
children (SIGKILL) at a random instant, until it has had its share of the kills; then it may end. Of a launcher's three,
one dies first and the others a moment later. After every kill, what looks published must be whole; at the end, every byte
must be that of the reference, and nothing else may lie there. Needs Python's standard library alone.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop"))
sys.path.insert(0, os.path.join(HERE, "..", "tools"))
import synthetic_checkpoint  # noqa: E402
from program import Checks, environment, work_directory  # noqa: E402

LAYOUT = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2", "--expert-model-parallel-size", "4"]
LAUNCHED = "prepare-spmd, 3 processes of a launcher"


def files_of(path):
    found = {}
    for directory, _, names in os.walk(path):
        for name in names:
            full = os.path.join(directory, name)
            found[os.path.relpath(full, path)] = full
    return found


def same_trees(checks, what, a, b):
    left, right = ({n: p for n, p in files_of(x).items() if n != ".export_hf.lock"} for x in (a, b))
    checks.that(set(left) == set(right), f"{what}: other files: {sorted(set(left) ^ set(right))[:5]}")
    for name in sorted(set(left) & set(right)):
        with open(left[name], "rb") as x, open(right[name], "rb") as y:
            checks.that(x.read() == y.read(), f"{what}: {name} differs")


class Process:
    """A command with its children."""

    def __init__(self, words, **variables):
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        env=environment(**variables), start_new_session=True)

    def wait(self, timeout):
        self.process.wait(timeout)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def finish(self, what):
        _, error = self.process.communicate(timeout=100)
        # An export whose last file is there is complete: killed behind it, it is not made again.
        if self.process.returncode != 0 and "holds a complete model" not in error:
            sys.exit(f"{what} ended with {self.process.returncode}:\n{error[-3000:]}")


class Launcher:
    """Three ranks as torchrun starts them, but some later than others."""

    def __init__(self, words, rng):
        self.rng, self.ranks = rng, []
        order = rng.sample(range(3), 3)
        for rank in order:
            time.sleep(rng.choice((0, rng.uniform(0, 0.4))))
            self.ranks.append(Process(words, RANK=str(rank), WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500"))

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        for rank in self.ranks:
            rank.wait(max(0.0, deadline - time.monotonic()))

    def kill(self):
        self.rng.shuffle(self.ranks)
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                rank.kill()
            time.sleep(self.rng.uniform(0, 0.3))

    def finish(self, what):
        for rank in self.ranks:
            rank.finish(what)


def conversions(work, model):
    """name: (arguments without the output, the output option)"""
    spmd = ["prepare-spmd", "--hf-checkpoint", model, "--model-dir", os.path.join(work, "models"), *LAYOUT]
    released = os.path.join(work, "torch_dist")
    return {
        "prepare-single": (["prepare-single", "--input-fp8-hf-path", model, "--model-dir", os.path.join(work, "models"),
                            "--model-name", "x", "--hf-checkpoint", model], "--output-bf16-hf-path"),
        "prepare-spmd": (spmd, "--save"),
        "prepare-spmd, 3 processes": ([*spmd, "--num-procs", "3"], "--save"),
        LAUNCHED: (spmd, "--save"),
        "export-hf over the original": (["export-hf", "--load", released, "--source", model, "--dtype", "fp8"], "--output"),
    }


def check_published(checks, what, output, reference):
    """Whatever a reader would take for complete has every file of the reference, in full size."""
    release = os.path.join(output, "release")
    if os.path.isdir(release):
        for name, path in files_of(os.path.join(reference, "release")).items():
            other = os.path.join(release, name)
            checks.that(os.path.isfile(other) and os.path.getsize(other) == os.path.getsize(path),
                        f"{what}: published without {name}")
    checks.that(os.path.isdir(release) or not os.path.exists(os.path.join(output, "latest_checkpointed_iteration.txt")),
                f"{what}: a tracker without its directory")
    if os.path.exists(os.path.join(output, "model.safetensors.index.json")):
        for name, path in files_of(reference).items():
            if name.endswith(".safetensors"):
                other = os.path.join(output, name)
                checks.that(os.path.isfile(other) and os.path.getsize(other) == os.path.getsize(path),
                            f"{what}: an index without {name}")


def check(checks, fathom, work, name, args, option, kills, rng):
    reference, output = os.path.join(work, "reference"), os.path.join(work, "output")
    for path in (reference, output):
        shutil.rmtree(path, ignore_errors=True)

    def start(target):
        words = [fathom, *args, option, target]
        return Launcher(words, rng) if name == LAUNCHED else Process(words)

    begin = time.monotonic()
    start(reference).finish(name)
    duration = time.monotonic() - begin
    done = rounds = 0
    while done < kills:
        shutil.rmtree(output, ignore_errors=True)
        rounds += 1
        # Several kills in one life of the output, until a run gets through.
        while True:
            process = start(output)
            if done < kills:
                try:
                    process.wait(timeout=rng.uniform(0, 1.1 * duration))
                except subprocess.TimeoutExpired:
                    process.kill()
                    done += 1
                    check_published(checks, f"{name} after {done} kills", output, reference)
                    continue
            process.finish(f"{name} after {done} kills")
            break
        same_trees(checks, f"{name} after {done} kills", reference, output)
    print(f"{name}: {done} kills in {rounds} outputs, {duration:.2f} s undisturbed", flush=True)
    return done


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, checks, total = random.Random(args.seed), Checks(), 0
    with work_directory("convert_kills") as work:
        model = os.path.join(work, "model")
        synthetic_checkpoint.make("small", model, fill=True)
        all_of_them = conversions(work, model)
        Process([args.fathom, *all_of_them["prepare-spmd"][0], "--save", os.path.join(work, "torch_dist")]).finish("prepare-spmd")
        for i, (name, (words, option)) in enumerate(all_of_them.items()):
            share = (args.kills + i) // len(all_of_them)
            total += check(checks, args.fathom, work, name, words, option, share, rng)
    print(f"{total} kills")
    sys.exit(checks.finish())


if __name__ == "__main__":
    main()
