"""What a training loop written for SGLang does with an engine, against `fathom serve` behind its router: wait until it
is up, register, generate with log-probs and routes, score, pause, change weights, abort, stream. Usage:
sglang_client.py FATHOM"""

import base64
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import program

CHECKPOINT = os.path.join(program.CONFIGS, "tiny", "base")
LAYERS, SLOTS = 3, 2


class Process:
    """A server of the program on a free port."""

    def __init__(self, fathom, *options):
        self.process = subprocess.Popen([fathom, "serve", "--port", "0", *options], stderr=subprocess.PIPE, text=True,
                                        env=program.environment())
        self.address = None
        for line in self.process.stderr:
            if found := re.match(r"(?:serve|router): (http://\S+)", line):
                self.address = found.group(1)
                break
        if self.address is None:
            sys.exit("the server did not start")
        # Whoever does not read the log would stop the server when the pipe is full.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def ask(address, path, body=None, method=None, timeout=60):
    """Status and body, as JSON where it is."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data=data, method=method,
                                     headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode()


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def rollout_request(ids, seed, max_new_tokens=40):
    return {"input_ids": ids, "return_logprob": True, "return_routed_experts": True, "return_indexer_topk": True,
            "sampling_params": {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": max_new_tokens,
                                "stop": None, "stop_token_ids": None, "skip_special_tokens": False,
                                "no_stop_trim": True, "spaces_between_special_tokens": False, "sampling_seed": seed}}


def generation(checks, address, prompt):
    _, answer = ask(address, "/generate", rollout_request(prompt, 17))
    meta = answer["meta_info"]
    tokens = [entry[1] for entry in meta["output_token_logprobs"]]
    log_probs = [entry[0] for entry in meta["output_token_logprobs"]]
    checks.that(tokens == answer["output_ids"] and len(tokens) == meta["completion_tokens"], "tokens of the log-probs")
    checks.that(meta["prompt_tokens"] == len(prompt), "prompt_tokens")
    checks.that(meta["finish_reason"]["type"] in ("stop", "length"), f"{meta['finish_reason']}")
    routes = base64.b64decode(meta["routed_experts"])
    rows = len(prompt) + len(tokens) - 1
    checks.that(len(routes) == rows * LAYERS * SLOTS * 4, f"{len(routes)} bytes of routes")
    values = struct.unpack(f"<{len(routes) // 4}i", routes)
    checks.that(all(0 <= value < 8 for value in values), "routes are experts")
    picks = base64.b64decode(meta["indexer_topk"])
    checks.that(meta["indexer_topk_num_layers"] == 1 and len(picks) == rows * 4 * 4, f"{len(picks)} bytes of picks")

    # Scoring what was sampled gives the same log-probs: decode and prefill are one forward.
    _, score = ask(address, "/generate", {
        "input_ids": prompt + tokens, "return_logprob": True, "logprob_start_len": len(prompt) - 1,
        "sampling_params": {"max_new_tokens": 0, "temperature": 0}})
    scored = [entry[0] for entry in score["meta_info"]["input_token_logprobs"][1:]]
    checks.that(scored == log_probs, "scored log-probs differ from decoded ones")

    seeds = list(range(17, 25))
    _, batch = ask(address, "/generate", {**rollout_request([prompt] * len(seeds), None),
                                          "sampling_params": [rollout_request(prompt, seed)["sampling_params"]
                                                              for seed in seeds]})
    checks.that(batch[0]["output_ids"] == tokens, "a batch gives the same tokens")
    checks.that(any(answer["output_ids"] != tokens for answer in batch[1:]), "other seeds give others")

    request = urllib.request.Request(address + "/generate", method="POST", data=json.dumps(
        {**rollout_request(prompt, 17), "stream": True}).encode())
    events = []
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                events.append(json.loads(line[6:]))
    checks.that(events[-1]["output_ids"] == tokens, "a stream gives the same tokens")
    checks.that(all(b["text"].startswith(a["text"]) for a, b in zip(events, events[1:])), "text only grows")
    return tokens


def control(checks, engine, prompt, tokens):
    address = engine.address
    checks.that(ask(address, "/pause_generation", {"mode": "retract"})[0] == 200, "pause")
    checks.that(ask(address, "/flush_cache")[0] == 200, "flush_cache")
    status, reply = ask(address, "/update_weights_from_disk", {"model_path": CHECKPOINT, "weight_version": "7"})
    checks.that(status == 200 and reply["success"], f"update_weights_from_disk: {reply}")
    checks.that(ask(address, "/continue_generation", {})[0] == 200, "continue")
    _, answer = ask(address, "/generate", rollout_request(prompt, 17))
    checks.that(answer["meta_info"]["weight_version"] == "7", f"{answer['meta_info']['weight_version']}")
    checks.that(answer["output_ids"] == tokens, "the same weights give the same tokens")
    _, snapshot = ask(address, "/weights_checker", {"action": "snapshot"})
    _, compared = ask(address, "/weights_checker", {"action": "compare"})
    checks.that(snapshot["success"] and compared["success"], f"{compared}")
    status, values = ask(address, "/get_weights_by_name", {"name": "norm.weight", "truncate_size": 5})
    checks.that(status == 200 and len(values) == 5, f"get_weights_by_name: {values}")
    status, reply = ask(address, "/update_weights_from_disk", {"model_path": "/nowhere"})
    checks.that(status == 400 and not reply["success"], f"{reply}")
    status, reply = ask(address, "/update_weights_from_tensor", {"serialized_named_tensors": ["gASV"]})
    checks.that(status == 501 and "Python" in reply["error"]["message"], f"{reply}")


def dies_under_load(checks, router, engines, prompt, tokens):
    """One of two engines is killed while requests are under way: every answer is there, and right."""
    answers = []

    def work():
        for _ in range(10):
            answers.append(ask(router.address, "/generate", rollout_request(prompt, 17)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) >= 15)
    engines[0].end(signal.SIGKILL)
    for thread in threads:
        thread.join()
    checks.that(len(answers) == 80 and all(status == 200 for status, _ in answers),
                f"{sum(status != 200 for status, _ in answers)} of {len(answers)} requests were lost")
    checks.that(all(answer["output_ids"] == tokens for status, answer in answers if status == 200), "and right")


def main():
    fathom = sys.argv[1]
    checks = program.Checks()
    prompt = [0, 58, 5, 6, 7, 59, 61]
    router = Process(fathom, "--router", "--health-check-interval", "1", "--policy", "round_robin")
    engines = [Process(fathom, "--hf-checkpoint", CHECKPOINT, "--threads", "1") for _ in range(2)]
    try:
        for engine in engines:
            checks.that(until(lambda: ask(engine.address, "/health_generate")[0] == 200), "the engine comes up")
            checks.that(until(lambda: ask(engine.address, "/flush_cache")[0] == 200), "its cache can be flushed")
            status, reply = ask(router.address, "/workers", {"url": engine.address, "worker_type": "regular"})
            checks.that(status == 202, f"POST /workers: {status} {reply}")
        checks.that(until(lambda: ask(router.address, "/workers")[1]["stats"]["healthy"] == 2), "two healthy workers")
        tokens = generation(checks, engines[0].address, prompt)
        checks.that(generation(checks, router.address, prompt) == tokens, "the same through the router")
        control(checks, engines[0], prompt, tokens)
        _, metrics = ask(engines[0].address, "/metrics")
        checks.that("sglang:generation_tokens_total{" in metrics, "metrics")
        dies_under_load(checks, router, engines, prompt, tokens)
        checks.that(ask(router.address, "/workers/" + urllib.parse.quote(engines[0].address, safe=""),
                        method="DELETE")[0] == 202, "DELETE /workers/URL")
        checks.that(engines[1].end() == 0, "an engine ends with 0 after SIGTERM")
        checks.that(router.end() == 0, "the router ends with 0 after SIGTERM")
    finally:
        for process in [router, *engines]:
            process.process.kill()
            process.process.wait()
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
