"""The events of a run, read by TensorBoard: the same steps, tags and values as metrics.jsonl.

usage: tensorboard_events.py PATH_TO_FATHOM

Read twice: after a whole run, and after a run that was stopped in the middle and went on from its last
checkpoint, where each step must still appear once.
"""

import math
import os
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from program import Checks, read_lines, run_ok, tiny_run, work_directory


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def check_run(checks, what, path, num_rollout):
    # Without purging, which would hide a step that appears twice.
    events = EventAccumulator(os.path.join(path, "tensorboard"), size_guidance={"scalars": 0},
                              purge_orphaned_data=False)
    events.Reload()
    read = {(tag, event.step): [] for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            read[tag, event.step].append(event.value)
            checks.that(event.wall_time > 1.6e9, f"{what}: {tag} at step {event.step}: time {event.wall_time}")
    lines = read_lines(os.path.join(path, "metrics.jsonl"))
    checks.that([line["step"] for line in lines] == list(range(-1, num_rollout)),
                f"{what}: steps of metrics.jsonl are {[line['step'] for line in lines]}")
    wanted = {(tag, line["step"]): value for line in lines for tag, value in line.items()
              if tag != "step" and value is not None}
    checks.that(any(tag == "train/train_rollout_logprob_abs_diff" for tag, _ in wanted), f"{what}: no train metrics")
    checks.that(any(tag == "eval/digit_sum" for tag, _ in wanted), f"{what}: no evaluation")
    checks.that(set(read) == set(wanted), f"{what}: tags and steps differ: {sorted(set(read) ^ set(wanted))[:6]}")
    for key in sorted(set(read) & set(wanted)):
        checks.that(len(read[key]) == 1, f"{what}: {key} appears {len(read[key])} times")
        checks.that(math.isfinite(wanted[key]) and read[key][-1] == as_float32(wanted[key]),
                    f"{what}: {key}: {read[key][-1]} in the events, {wanted[key]} in metrics.jsonl")


def main():
    fathom = sys.argv[1]
    checks = Checks()
    with work_directory("tensorboard") as work:
        run_ok(fathom, *tiny_run(work, "whole", num_rollout=4))
        check_run(checks, "whole run", os.path.join(work, "runs", "whole"), 4)
        # Stopped after step 3 of 6; the last checkpoint is that of step 2, so one step is done again.
        run_ok(fathom, *tiny_run(work, "stopped", num_rollout=6), "--debug-exit-after-rollout", 3)
        run_ok(fathom, *tiny_run(work, "stopped", num_rollout=6))
        check_run(checks, "resumed run", os.path.join(work, "runs", "stopped"), 6)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
