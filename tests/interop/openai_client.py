"""The `openai` package against `fathom serve` (a real checkpoint) and against the same server with a scripted
model (thinking, tools): chat, completions, streaming, log-probs, errors. Usage: openai_client.py FATHOM SCRIPTED_SERVER"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys

import openai

import program

CHECKPOINT = os.path.join(program.CONFIGS, "tiny", "base")
KEY = "test-key"


@contextlib.contextmanager
def fathom_serve(fathom, *options):
    """A server on a free port; its address. Has to end with status 0 after SIGTERM."""
    server = subprocess.Popen([fathom, "serve", "--hf-checkpoint", CHECKPOINT, "--port", "0", "--thinking-mode", "chat",
                               "--threads", "2", *options], stderr=subprocess.PIPE, text=True,
                              env=program.environment(MILES_SCRIPT_API_KEY=KEY))
    try:
        address = None
        for line in server.stderr:
            if found := re.match(r"serve: (http://\S+)", line):
                address = found.group(1)
                break
        if address is None:
            sys.exit("the server did not start")
        yield address
        server.send_signal(signal.SIGTERM)
        rest = server.stderr.read()
        if server.wait(timeout=60) != 0:
            sys.exit(f"the server ended with {server.returncode}: {rest}")
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def scripted_server(binary, work, script):
    path = os.path.join(work, "script.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(script, file)
    server = subprocess.Popen([binary, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()
        if server.wait(timeout=60) != 0:
            sys.exit(f"the scripted server ended with {server.returncode}")
    finally:
        server.kill()
        server.wait()


def client_of(address, key=KEY):
    return openai.OpenAI(base_url=address + "/v1", api_key=key, max_retries=0, timeout=60)


def same_bits_as_the_program(checks, fathom, work, client):
    """Tokens and log-probs of the completions endpoint are those of `fathom generate`."""
    prompt = "8+6+5+7="
    source = program.write_lines(os.path.join(work, "prompt.jsonl"), [{"prompt": prompt}])
    target = os.path.join(work, "answers.jsonl")
    program.run_ok(fathom, "generate", "--hf-checkpoint", CHECKPOINT, "--input", source, "--output", target,
                   "--temperature", "0", "--max-new-tokens", "20")
    expected = program.read_lines(target)[0]
    answer = client.completions.create(model="base", prompt=prompt, max_tokens=20, temperature=0, logprobs=1)
    got = answer.choices[0]
    checks.that(got.text == expected["text"], f"text {got.text!r}, expected {expected['text']!r}")
    checks.that(got.logprobs.token_logprobs == expected["logprobs"], "log-probs differ from fathom generate")
    checks.that(got.finish_reason == expected["finish_reason"], f"finish_reason {got.finish_reason}")
    checks.that(answer.usage.completion_tokens == len(expected["token_ids"]), f"usage {answer.usage}")


def completions(checks, client):
    models = client.models.list()
    checks.that([model.id for model in models] == ["base"], f"models {models}")
    several = client.completions.create(model="base", prompt=["1+2+3+4=", "5+5+5+5="], max_tokens=8, n=2, seed=5)
    checks.that([choice.index for choice in several.choices] == [0, 1, 2, 3], "four choices in order")
    again = client.completions.create(model="base", prompt=["1+2+3+4=", "5+5+5+5="], max_tokens=8, n=2, seed=5)
    checks.that([c.text for c in several.choices] == [c.text for c in again.choices], "the seed decides")
    text, finish = "", None
    for event in client.completions.create(model="base", prompt="8+6+5+7=", max_tokens=20, temperature=0, stream=True):
        text += event.choices[0].text
        finish = event.choices[0].finish_reason or finish
    whole = client.completions.create(model="base", prompt="8+6+5+7=", max_tokens=20, temperature=0)
    checks.that(text == whole.choices[0].text, f"streamed {text!r}, whole {whole.choices[0].text!r}")
    checks.that(finish == whole.choices[0].finish_reason, f"finish_reason {finish}")
    echoed = client.completions.create(model="base", prompt="8+6+5+7=", max_tokens=0, echo=True, logprobs=0)
    checks.that(echoed.choices[0].text == "8+6+5+7=", "echo")
    checks.that(echoed.choices[0].logprobs.token_logprobs[0] is None, "the first token has no log-prob")
    checks.that(all(p <= 0 for p in echoed.choices[0].logprobs.token_logprobs[1:]), "log-probs are at most 0")


def chat(checks, client):
    messages = [{"role": "user", "content": "8+6+5+7="}]
    answer = client.chat.completions.create(model="base", messages=messages, temperature=0, max_completion_tokens=30,
                                            logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    checks.that("boxed" in choice.message.content, f"content {choice.message.content!r}")
    checks.that(choice.message.role == "assistant" and choice.finish_reason == "stop", f"{choice}")
    tokens = choice.logprobs.content
    checks.that(len(tokens) == answer.usage.completion_tokens, "one log-prob a token")
    checks.that(all(len(t.top_logprobs) == 3 and t.top_logprobs[0].logprob == t.logprob for t in tokens),
                "greedy tokens are the likeliest")
    checks.that(all(math.isfinite(t.logprob) for t in tokens), "log-probs are finite")
    checks.that(bytes(b for t in tokens[:-1] for b in t.bytes).decode() == choice.message.content, "bytes join to text")

    content, chunks = "", list(client.chat.completions.create(
        model="base", messages=messages, temperature=0, max_tokens=30, stream=True,
        stream_options={"include_usage": True}))
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            content += chunk.choices[0].delta.content
    checks.that(content == choice.message.content, f"streamed {content!r}")
    checks.that(chunks[0].choices[0].delta.role == "assistant", "the first event has the role")
    checks.that(chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == answer.usage.completion_tokens,
                "the last event has the usage")


def errors(checks, address, client):
    def status_of(call):
        try:
            call()
        except openai.APIStatusError as error:
            return error.status_code, error.body.get("param") if isinstance(error.body, dict) else None
        return 200, None

    ask = client.chat.completions.create
    messages = [{"role": "user", "content": "1"}]
    checks.that(status_of(lambda: ask(model="other", messages=messages)) == (404, "model"), "another model's name")
    checks.that(status_of(lambda: ask(model="base", messages=messages, temperature=-1)) == (400, "temperature"),
                "temperature -1")
    checks.that(status_of(lambda: ask(model="base", messages=[])) == (400, "messages"), "no messages")
    checks.that(status_of(lambda: ask(model="base", messages=messages, extra_body={"tempersture": 1}))
                == (400, "tempersture"), "a misspelt field")
    stranger = client_of(address, "wrong-key")
    checks.that(status_of(lambda: stranger.models.list())[0] == 401, "a wrong key")


TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                   "required": ["city"]}}}]
CALL = ("\n\n<\uff5cDSML\uff5ctool_calls>\n<\uff5cDSML\uff5cinvoke name=\"get_weather\">\n"
        "<\uff5cDSML\uff5cparameter name=\"city\" string=\"true\">Paris</\uff5cDSML\uff5cparameter>\n"
        "<\uff5cDSML\uff5cparameter name=\"days\" string=\"false\">3</\uff5cDSML\uff5cparameter>\n"
        "</\uff5cDSML\uff5cinvoke>\n</\uff5cDSML\uff5ctool_calls>")
QUESTION = [{"role": "user", "content": "Weather in Paris?"}]


def tools_and_thinking(checks, binary, work):
    called = {"role": "assistant", "content": "Looking.", "reasoning_content": "I need the tool.", "tool_calls": [
        {"id": "c1", "type": "function",
         "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\", \"days\": 3}"}}]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    script = [
        {"messages": QUESTION, "tools": TOOLS, "answer": "I need the tool.</think>Looking." + CALL},
        {"messages": QUESTION + [called, result], "tools": TOOLS, "answer": "Good.</think>It is sunny, 20 \u00b0C."},
        {"messages": QUESTION, "thinking": False, "answer": "I cannot know."},
    ]
    with scripted_server(binary, work, script) as address:
        client = client_of(address)
        ask = client.chat.completions.create
        answer = ask(model="scripted", messages=QUESTION, tools=TOOLS, temperature=0).choices[0]
        checks.that(answer.finish_reason == "tool_calls", f"finish_reason {answer.finish_reason}")
        checks.that(answer.message.content == "Looking.", f"content {answer.message.content!r}")
        checks.that(answer.message.reasoning_content == "I need the tool.", "reasoning_content")
        call = answer.message.tool_calls[0]
        checks.that(call.function.name == "get_weather", "the call's name")
        checks.that(json.loads(call.function.arguments) == {"city": "Paris", "days": 3}, call.function.arguments)

        # The conversation goes on with the message object of the client itself.
        follow = ask(model="scripted", tools=TOOLS, temperature=0, messages=QUESTION + [
            answer.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]).choices[0]
        checks.that(follow.message.content == "It is sunny, 20 \u00b0C.", f"content {follow.message.content!r}")

        plain = ask(model="scripted", messages=QUESTION, temperature=0,
                    extra_body={"chat_template_kwargs": {"thinking": False}}).choices[0]
        checks.that(plain.message.content == "I cannot know.", f"content {plain.message.content!r}")

        reasoning, content, calls, finish = "", "", {}, None
        for chunk in ask(model="scripted", messages=QUESTION, tools=TOOLS, temperature=0, stream=True):
            delta = chunk.choices[0].delta
            reasoning += getattr(delta, "reasoning_content", None) or ""
            content += delta.content or ""
            for piece in delta.tool_calls or []:
                known = calls.setdefault(piece.index, {"name": "", "arguments": ""})
                known["name"] += piece.function.name or ""
                known["arguments"] += piece.function.arguments or ""
            finish = chunk.choices[0].finish_reason or finish
        checks.that((reasoning, content) == ("I need the tool.", "Looking."), f"streamed {reasoning!r} {content!r}")
        checks.that(list(calls) == [0] and calls[0]["name"] == "get_weather"
                    and json.loads(calls[0]["arguments"]) == {"city": "Paris", "days": 3}, f"streamed calls {calls}")
        checks.that(finish == "tool_calls", f"finish_reason {finish}")

        # The client's own helper that gathers a stream.
        with client.chat.completions.stream(model="scripted", messages=QUESTION, tools=TOOLS, temperature=0) as stream:
            final = stream.get_final_completion().choices[0].message
        checks.that(final.content == "Looking." and final.tool_calls[0].function.name == "get_weather",
                    f"gathered {final}")


def main():
    fathom, scripted = sys.argv[1], sys.argv[2]
    checks = program.Checks()
    with program.work_directory("openai") as work:
        with fathom_serve(fathom) as address:
            client = client_of(address)
            same_bits_as_the_program(checks, fathom, work, client)
            completions(checks, client)
            chat(checks, client)
            errors(checks, address, client)
        tools_and_thinking(checks, scripted, work)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
