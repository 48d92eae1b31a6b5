"""`fathom serve` as a program: who may ask, what SIGTERM does, and the same bits as `generate` and `score` in every mode.

usage: serve.py PATH_TO_FATHOM

Needs Python's standard library alone."""

import http.client
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from program import CONFIGS, Checks, environment, read_lines, run, run_ok, work_directory, write_lines  # noqa: E402

BASE = os.path.join(CONFIGS, "tiny", "base")
MASK = (1 << 64) - 1


def mix64(a, b):
    """As in base/hash.h: how `generate` makes the seeds of its answers."""
    z = (a + 0x9E3779B97F4A7C15 * (b + 1)) & MASK
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
        z = (z + b) & MASK
    return z


class Server:
    def __init__(self, fathom, *options, **extra):
        self.process = subprocess.Popen([fathom, "serve", "--hf-checkpoint", BASE, "--port", "0", *options],
                                        stderr=subprocess.PIPE, text=True, env=environment(**extra))
        self.port = None
        for line in self.process.stderr:
            if found := re.match(r"serve: http://[^:]*:(\d+)", line):
                self.port = int(found.group(1))
                break
        if self.port is None:
            sys.exit("the server did not start")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def ask(self, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body),
                           headers or {})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, json.loads(text) if text[:1] in (b"{", b"[") else text.decode()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(timeout=120)


def request(prompt, seed, num_new=60, **more):
    return {"input_ids": prompt, "return_logprob": True, **more,
            "sampling_params": {"max_new_tokens": num_new, "sampling_seed": seed, "ignore_eos": True}}


def access(checks, fathom):
    refused = run(fathom, "serve", "--hf-checkpoint", BASE, "--host", "0.0.0.0", "--port", "0")
    checks.that(refused.returncode == 2 and "--api-key" in refused.stderr, f"no key on 0.0.0.0: {refused.stderr}")
    server = Server(fathom, "--host", "0.0.0.0", MILES_SCRIPT_API_KEY="secret key")
    checks.that(server.ask("/health")[0] == 200, "health needs no key")
    checks.that(server.ask("/get_server_info")[0] == 401, "everything else does")
    checks.that(server.ask("/generate", request([0], 1))[0] == 401, "generate does")
    key = {"Authorization": "Bearer secret key"}
    checks.that(server.ask("/generate", request([0], 1), key)[0] == 200, "the key opens it")
    _, info = server.ask("/get_server_info", headers=key)
    checks.that("secret" not in json.dumps(info), "the key is not told")
    checks.that(server.end(signal.SIGINT) == 0, "SIGINT ends it too")


def drain(checks, fathom):
    """SIGTERM lets a stream that is under way come to its end."""
    server = Server(fathom)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", "/generate", json.dumps(request([0, 5, 6], 3, num_new=900, stream=True)))
    response = connection.getresponse()
    events = [response.readline()]
    server.process.send_signal(signal.SIGTERM)
    events += [line for line in response if line.startswith(b"data: ")]
    checks.that(events[-1].strip() == b"data: [DONE]", f"the stream ends: {events[-1][:100]}")
    last = json.loads(events[-2][6:])
    checks.that(len(last["output_ids"]) == 900 and last["meta_info"]["finish_reason"]["type"] == "length",
                f"and is whole: {len(last['output_ids'])} tokens")
    checks.that(server.process.wait(timeout=60) == 0, "then the server ends with 0")
    try:
        server.ask("/health")
        checks.that(False, "nobody listens behind it")
    except OSError:
        pass


def read_scores(path, index):
    with open(path, "rb") as file:
        data = file.read()
    size = struct.unpack_from("<Q", data)[0]
    entry = json.loads(data[8:8 + size])[f"logprobs.{index}"]
    begin, end = entry["data_offsets"]
    return list(struct.unpack_from(f"<{entry['shape'][0]}f", data, 8 + size + begin)) if end > begin else []


def becomes_positive(server, metric):
    """The engine's own counts are put on the page a few times a second."""
    for _ in range(50):
        _, page = server.ask("/metrics")
        if float(re.search(rf"^{metric}{{[^}}]*}} (\S+)$", page, re.M).group(1)) > 0:
            return True
        time.sleep(0.1)
    return False


def same_bits(checks, fathom, work, precision):
    """Tokens and log-probs over HTTP are those of `generate` and of `score`, whatever runs beside them."""
    prompts = [[0] + [2 + (i * 7 + j * j) % 60 for j in range(1 + 9 * i)] for i in range(12)]
    source = write_lines(os.path.join(work, "prompts.jsonl"), [{"token_ids": prompt} for prompt in prompts])
    answers = os.path.join(work, "answers.jsonl")
    run_ok(fathom, "generate", "--hf-checkpoint", BASE, "--precision", precision, "--input", source, "--output",
           answers, "--max-new-tokens", 60, "--ignore-eos")
    direct = read_lines(answers)
    whole = write_lines(os.path.join(work, "whole.jsonl"),
                        [{"token_ids": prompt + line["token_ids"]} for prompt, line in zip(prompts, direct)])
    scores = os.path.join(work, "scores.safetensors")
    run_ok(fathom, "score", "--hf-checkpoint", BASE, "--precision", precision, "--input", whole, "--output", scores)

    for name, options in {
            "plain": [],
            "little memory, guessing": ["--sglang-state-memory-bytes", str(60_000),
                                        "--sglang-speculative-algorithm", "EAGLE",
                                        "--sglang-chunked-prefill-size", "13"],
    }.items():
        server = Server(fathom, "--precision", precision, *options)
        got = [None] * len(prompts)

        def ask(i):
            got[i] = server.ask("/generate", request(prompts[i], mix64(mix64(0, i), 0)))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, (status, answer) in enumerate(got):
            label = f"{precision}, {name}, prompt {i}"
            if not checks.that(status == 200, f"{label}: {status} {answer}"):
                continue
            log_probs = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
            checks.that(answer["output_ids"] == direct[i]["token_ids"], f"{label}: tokens of generate")
            checks.that(log_probs == direct[i]["logprobs"], f"{label}: log-probs of generate")
            checks.that(log_probs == read_scores(scores, i)[len(prompts[i]) - 1:], f"{label}: log-probs of score")
        if options:
            checks.that(becomes_positive(server, "sglang:spec_verify_calls_total"), "guesses are made")
            checks.that(becomes_positive(server, "sglang:evicted_tokens_total"), "memory runs short")
        checks.that(server.end() == 0, "the server ends")


def weights_come_and_go(checks, fathom):
    """Released memory is really given back, and everything is as before behind it."""
    server = Server(fathom)
    _, before = server.ask("/generate", request([0, 9, 8, 7] * 40, 5))
    status, released = server.ask("/release_memory_occupation", {})
    checks.that(status == 200 and released["state_bytes"] > 0, f"release: {released}")
    checks.that(released["resident_bytes_after"] < released["resident_bytes_before"], f"it is gone: {released}")
    checks.that(server.ask("/get_weights_by_name", {"name": "norm.weight"})[0] == 400, "no weights to show")
    checks.that(server.ask("/health")[0] == 200, "the server is alive")
    answer = []
    waiting = threading.Thread(target=lambda: answer.append(server.ask("/generate", request([0, 9, 8, 7] * 40, 5))))
    waiting.start()
    time.sleep(0.3)
    checks.that(not answer, "a request waits")
    checks.that(server.ask("/resume_memory_occupation", {})[0] == 200, "resume")
    waiting.join()
    checks.that(answer[0][1]["output_ids"] == before["output_ids"], "the same answer")
    server.ask("/release_memory_occupation", {"tags": ["weights"]})
    _, reply = server.ask("/update_weights_from_disk", {"model_path": BASE})
    checks.that(reply["success"], f"new weights take the place of released ones: {reply}")
    checks.that(server.ask("/generate", request([0, 9, 8, 7] * 40, 5))[1]["output_ids"] == before["output_ids"], "again")
    checks.that(server.end() == 0, "the server ends")


def main():
    fathom = sys.argv[1]
    checks = Checks()
    access(checks, fathom)
    drain(checks, fathom)
    weights_come_and_go(checks, fathom)
    with work_directory("serve") as work:
        for precision in ("fp32", "parity-bf16", "parity-fp8"):
            same_bits(checks, fathom, work, precision)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
