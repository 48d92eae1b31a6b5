"""Checkpoints of the published sizes: counts and conversion plans, without their weights.

usage: full_size.py PATH_TO_FATHOM [--models flash,pro]

synthetic_checkpoint.py writes Flash and Pro as sparse files with real headers. Their tensors and bytes must be the
published ones, `prepare-spmd --plan-only` must account for every one of them in all three layouts of the recipe,
and a rank must get what Megatron's arithmetic says.
"""

import argparse
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop"))
sys.path.insert(0, os.path.join(HERE, "..", "tools"))
import synthetic_checkpoint  # noqa: E402
from program import Checks, environment, work_directory  # noqa: E402

PUBLISHED = {"flash": (69187, 159609485896, 46), "pro": (145116, 864704792696, 64)}


def expert_bytes(name):
    """BF16 bytes of one layer's routed experts."""
    m = synthetic_checkpoint.MODELS[name]
    return m["experts"] * 3 * m["width"] * m["hidden"] * 2


def plans(fathom, model, *args):
    done = subprocess.run([fathom, "prepare-spmd", "--hf-checkpoint", model, "--save", model + "-nowhere", "--model-dir",
                           model + "-models", "--plan-only", *args], capture_output=True, text=True, env=environment())
    if done.returncode != 0:
        sys.exit(f"--plan-only ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def check(checks, fathom, work, name):
    model = os.path.join(work, name)
    count, total = synthetic_checkpoint.make(name, model)
    tensors, size, shards = PUBLISHED[name]
    checks.that((count, total) == (tensors, size), f"{name}: {count} tensors, {total} bytes made")
    text = plans(fathom, model)
    checks.that(f"{tensors} tensors, {size} bytes in {shards} files" in text, f"{name}: {text.splitlines()[0]}")
    found = re.findall(r"^(TP .*): (\d+) ranks?, (\d+) tensors in (\d+) pieces, (\d+) files, (\d+) bytes; reads (\d+) bytes$",
                       text, re.M)
    checks.that(len(found) == 3, f"{name}: {len(found)} layouts: {text[:500]}")
    m = synthetic_checkpoint.MODELS[name]
    for layout, ranks, _, pieces, _, written, read in found:
        checks.that(int(read) == size, f"{name}, {layout}: reads {read} of {size} bytes")
        # Every expert matrix is a piece of its own, MTP included.
        experts = (m["layers"] + 1) * m["experts"] * 3
        checks.that(experts < int(pieces) < experts * 1.15, f"{name}, {layout}: {pieces} pieces")
        section = text[text.index(layout + ":"):]
        rows = re.findall(r"^ +(\d+) +(\d+) +(\d+) +(\d+)$", section.split("\n\n")[0], re.M)
        checks.that(len(rows) == int(ranks), f"{name}, {layout}: {len(rows)} rows")
        checks.that(sum(int(row[3]) for row in rows) == int(written), f"{name}, {layout}: the ranks' bytes do not add up")
    # The middle stages of PP 8 with 7 first and 6 last: their layers' experts over EP ranks, and little else.
    for layout, ep in (("TP 1, PP 8 (first 7, last 6), EP 4", 4), ("TP 8, PP 8 (first 7, last 6), EP 32", 32)):
        section = text[text.index(layout + ":"):].split("\n\n")[0]
        per_stage = (m["layers"] - 13) // 6
        share = per_stage * expert_bytes(name) / ep
        for rank, stage, _, size_text in re.findall(r"^ +(\d+) +(\d+) +(\d+) +(\d+)$", section, re.M):
            if 0 < int(stage) < 7:
                checks.that(share < int(size_text) < share * 1.15, f"{name}, {layout}: rank {rank} gets {size_text} bytes, "
                            f"its experts are {share:.0f}")
    checks.that(not os.path.exists(model + "-nowhere"), f"{name}: --plan-only wrote something")
    print(f"{name}: {tensors} tensors, {size} bytes; {found[0][5]} bytes of torch_dist")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--models", default="flash,pro")
    args = parser.parse_args()
    checks = Checks()
    with work_directory("full_size") as work:
        for name in args.models.split(","):
            check(checks, args.fathom, work, name)
    sys.exit(checks.finish())


if __name__ == "__main__":
    main()
