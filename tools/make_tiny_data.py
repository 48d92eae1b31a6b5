#!/usr/bin/env python3
"""Makes the data of the tiny recipe: sums of four digits.

  prompts   8+6+5+7=          every ordered choice of four digits, split by digit multiset, so that no
                              reordering of a held-out prompt is ever trained on
  worked    14,19,26\\boxed{26}   running totals, then the result; two-digit numbers throughout
  guess     \\boxed{24}            true sum + uniform -3..3, floored at 0

Writes train.jsonl (prompts for RL), heldout.jsonl, and with --sft the examples that the base model is
made from: each is, independently of its prompt, a guess with probability 0.6, else worked. So about
half of the base model's targets are right, on purpose. The same seed gives the same bytes.
"""
import argparse
import itertools
import json
import os
import random

NUM_HELDOUT = 983
NUM_RL = 1920


def split_prompts(rng):
    """Three lists of digit tuples: base, RL, held out. A multiset belongs to one list."""
    multisets = list(itertools.combinations_with_replacement(range(10), 4))
    rng.shuffle(multisets)
    heldout, rl, base = [], [], []
    for multiset in multisets:
        orders = sorted(set(itertools.permutations(multiset)))
        if len(heldout) + len(orders) <= NUM_HELDOUT:
            heldout += orders
        elif len(rl) < NUM_RL:
            rl += orders
        else:
            base += orders
    for prompts in (heldout, rl, base):
        rng.shuffle(prompts)
    return base, rl[:NUM_RL], heldout


def prompt_text(digits):
    return "+".join(str(d) for d in digits) + "="


def worked_answer(digits):
    totals = list(itertools.accumulate(digits))[1:]
    return ",".join(f"{t:02d}" for t in totals) + "\\boxed{" + f"{totals[-1]:02d}" + "}"


def guessed_answer(digits, rng):
    return "\\boxed{" + f"{max(0, sum(digits) + rng.randint(-3, 3)):02d}" + "}"


def write_lines(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", required=True, help="directory for train.jsonl and heldout.jsonl")
    parser.add_argument("--sft", help="file for the base model's examples")
    parser.add_argument("--sft-examples", type=int, default=38400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    base, rl, heldout = split_prompts(random.Random(args.seed))
    os.makedirs(args.output, exist_ok=True)
    for name, prompts in (("train", rl), ("heldout", heldout)):
        write_lines(os.path.join(args.output, name + ".jsonl"),
                    [{"prompt": prompt_text(p), "label": str(sum(p))} for p in prompts])
    if args.sft:
        rng = random.Random(args.seed + 1)
        rows = []
        for _ in range(args.sft_examples):
            digits = rng.choice(base)
            is_guess = rng.random() < 0.6
            answer = guessed_answer(digits, rng) if is_guess else worked_answer(digits)
            rows.append({"prompt": prompt_text(digits), "response": answer})
        write_lines(args.sft, rows)
    print(f"{len(base)} base prompts, {len(rl)} RL prompts, {len(heldout)} held out")


if __name__ == "__main__":
    main()
