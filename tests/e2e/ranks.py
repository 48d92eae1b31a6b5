"""Several local ranks of one command against one, and what is said when one of them dies.

usage: ranks.py PATH_TO_FATHOM [--kills N] [--seed S]

score and sft with --num-procs against the same command in one process: log-probs and losses have the same bytes, gradients
lie within 1e-5 of them. Then ranks are killed at random moments: all processes are gone within 30 seconds, with
one message that names the rank, and no output that could be taken for whole. Needs Python's standard library
alone.
"""

import argparse
import array
import json
import math
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from program import CONFIGS, GOLDEN, Checks, environment, run, run_ok, work_directory, write_lines  # noqa: E402

MODEL = os.path.join(GOLDEN, "small", "model")


def read_tensors(path):
    """{name: bytes} of a safetensors file."""
    with open(path, "rb") as file:
        data = file.read()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + size])
    return {name: data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]]
            for name, entry in header.items() if name != "__metadata__"}


def relative_difference(a, b):
    a, b = array.array("f", a), array.array("f", b)
    norm = math.sqrt(sum(x * x for x in a))
    difference = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)))
    return difference / norm if norm else difference


def children_of(pid):
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8") as file:
                if int(file.read().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(name))
        except (OSError, IndexError):
            continue  # it has ended meanwhile
    return sorted(found)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def check_score(fathom, work, checks):
    ids = random.Random(1)
    lines = write_lines(os.path.join(work, "ids.jsonl"),
                        [{"token_ids": [ids.randrange(64) for _ in range(n)]} for n in (40, 7, 25, 1, 63, 12)])
    outputs = {}
    for ranks in (1, 2, 4):
        output = os.path.join(work, f"score{ranks}.safetensors")
        run_ok(fathom, "score", "--hf-checkpoint", MODEL, "--input", lines, "--output", output, "--with-logits",
               "--with-gradients", "--num-procs", ranks, "--threads", 1)
        outputs[ranks] = read_tensors(output)
    one = outputs[1]
    for ranks in (2, 4):
        many = outputs[ranks]
        checks.that(many.keys() == one.keys(), f"score on {ranks} ranks writes other tensors")
        for name, value in one.items():
            if name.startswith("grad."):
                difference = relative_difference(value, many[name])
                checks.that(difference <= 1e-5, f"{name} on {ranks} ranks differs by {difference}")
            else:
                checks.that(many[name] == value, f"{name} on {ranks} ranks has other bits")


def sft_words(work, output, ranks, steps):
    return ["sft", "--config", os.path.join(CONFIGS, "tiny_sft.json"),
            "--model-config", os.path.join(CONFIGS, "tiny", "model.json"),
            "--tokenizer-dir", os.path.join(CONFIGS, "tiny", "tokenizer"),
            "--prompt-data", os.path.join(work, "rows.jsonl"), "--output", output, "--sft-steps", str(steps),
            "--global-batch-size", "8", "--num-procs", str(ranks), "--threads", "1"]


def check_sft(fathom, work, checks):
    rows = [{"prompt": f"sum of the digits of {n}", "response": str(sum(map(int, str(n))))} for n in range(100, 164)]
    write_lines(os.path.join(work, "rows.jsonl"), rows)
    losses = {}
    for ranks in (1, 2):
        done = run_ok(fathom, *sft_words(work, os.path.join(work, f"sft{ranks}"), ranks, 20))
        losses[ranks] = re.findall(r"loss (\d+\.\d+)", done.stderr)
        checks.that(losses[ranks], f"sft on {ranks} ranks reports no loss: {done.stderr[-500:]}")
    checks.that(losses[1] == losses[2], f"losses of sft are {losses}")


def check_kills(fathom, work, checks, kills, dice):
    for kill in range(kills):
        ranks = dice.choice((2, 3, 4))
        output = os.path.join(work, f"killed{kill}")
        process = subprocess.Popen([fathom, *sft_words(work, output, ranks, 100000)], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, encoding="utf-8", env=environment())
        deadline = time.monotonic() + 20
        while len(pids := children_of(process.pid)) < ranks and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 3.0))
        victim = dice.randrange(ranks)
        os.kill(pids[victim], signal.SIGKILL)
        start = time.monotonic()
        try:
            _, said = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            checks.that(False, f"kill {kill}: {ranks} ranks were still there after 30 s")
            continue
        took = time.monotonic() - start
        checks.that(process.returncode == 1, f"kill {kill}: exit status {process.returncode}: {said[-500:]}")
        errors = [line for line in said.splitlines() if "error:" in line]
        checks.that(len(errors) == 1 and f"rank {victim} was ended by signal 9" in errors[0],
                    f"kill {kill} of rank {victim}: said {errors} in {said[-800:]}")
        checks.that(not any(map(is_alive, pids)), f"kill {kill}: ranks outlived the supervisor")
        checks.that(not os.path.exists(os.path.join(output, "config.json")), f"kill {kill}: an output was written")
        print(f"kill {kill}: rank {victim} of {ranks}, all gone after {took:.2f} s", flush=True)


def check_messages(fathom, work, checks):
    bad = write_lines(os.path.join(work, "bad.jsonl"), [{"token_ids": [1, 10 ** 9]}])
    done = run(fathom, "score", "--hf-checkpoint", MODEL, "--input", bad, "--output", os.path.join(work, "x"),
               "--num-procs", 3)
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    checks.that(done.returncode == 1 and len(errors) == 1 and "rank " in errors[0] and "line 1" in errors[0],
                f"bad data on three ranks: {done.returncode}, {done.stderr}")
    done = run(fathom, "score", "--hf-checkpoint", MODEL, "--input", bad, "--output", "x",
               env=environment(RANK="0", WORLD_SIZE="2"))
    checks.that(done.returncode == 2 and "MASTER_PORT" in done.stderr, f"no meeting place: {done.stderr}")
    done = run(fathom, "score", "--hf-checkpoint", MODEL, "--input", bad, "--output", "x", "--num-procs", 3,
               env=environment(RANK="0", WORLD_SIZE="2", MASTER_PORT="29999"))
    checks.that(done.returncode == 2 and "--num-procs 3" in done.stderr, f"two counts of ranks: {done.stderr}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    checks = Checks()
    with work_directory("ranks") as work:
        check_score(args.fathom, work, checks)
        check_messages(args.fathom, work, checks)
        check_sft(args.fathom, work, checks)
        check_kills(args.fathom, work, checks, args.kills, random.Random(args.seed))
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
