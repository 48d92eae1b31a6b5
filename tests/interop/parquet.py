"""Rows that pyarrow wrote are the same prompts as those of a .jsonl file.

usage: parquet.py PATH_TO_FATHOM
"""

import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from program import CONFIGS, Checks, read_lines, run, run_ok, work_directory, write_lines

ROWS = 24


def main():
    checks = Checks()
    fathom = sys.argv[1]
    rows = read_lines(os.path.join(CONFIGS, "tiny", "data", "heldout.jsonl"))[:ROWS]

    def evaluate(work, name, path, *args):
        output = os.path.join(work, name + ".jsonl")
        run_ok(fathom, "eval", "--hf-checkpoint", os.path.join(CONFIGS, "tiny", "base"), "--eval-prompt-data", "set", path,
               "--label-key", "label", "--rm-type", "math", "--apply-chat-template", "--apply-chat-template-kwargs",
               '{"thinking_mode":"chat"}', "--eval-temperature", "0", "--eval-max-response-len", "16", "--output", output,
               *args)
        return read_lines(output)

    with work_directory("parquet") as work:
        def table(name, **columns):
            path = os.path.join(work, name + ".parquet")
            options = columns.pop("options", {})
            pq.write_table(pa.table(columns), path, **options)
            return path

        lines = write_lines(os.path.join(work, "rows.jsonl"), rows)
        expected = evaluate(work, "expected", lines, "--input-key", "prompt")
        checks.that(len(expected) >= ROWS, f"{len(expected)} answers")
        prompts, labels = [r["prompt"] for r in rows], [r["label"] for r in rows]
        plain = table("plain", prompt=prompts, label=labels)
        checks.that(evaluate(work, "plain", plain, "--input-key", "prompt") == expected, "plain columns")
        messages = [[{"role": "user", "content": p}] for p in prompts]
        for compression in ("none", "snappy", "gzip", "zstd", "brotli", "lz4"):
            nested = table("nested_" + compression, messages=messages, label=labels,
                           options={"compression": compression, "row_group_size": 7})
            got = evaluate(work, "nested_" + compression, nested, "--input-key", "messages")
            checks.that(got == expected, f"nested messages, {compression}")
        part = evaluate(work, "part", nested + "@[5:9]", "--input-key", "messages")
        whole = evaluate(work, "whole", lines + "@[5:9]", "--input-key", "prompt")
        checks.that(part == whole, "a range of rows")
        original = table("original", question=prompts, answer=[f"Adding up.\n#### {label}" for label in labels])
        checks.that(evaluate(work, "original", original, "--input-key", "messages") == expected, "gsm8k's own columns")
        for path, words in ((plain, "the prompt \"messages\" is missing"), (plain + ".none.parquet", "cannot be opened")):
            done = run(fathom, "eval", "--hf-checkpoint", os.path.join(CONFIGS, "tiny", "base"), "--eval-prompt-data",
                       "set", path, "--input-key", "messages", "--label-key", "label", "--rm-type", "math",
                       "--apply-chat-template")
            checks.that(done.returncode == 1 and words in done.stderr, f"{path}: {done.stderr[-300:]}")
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
