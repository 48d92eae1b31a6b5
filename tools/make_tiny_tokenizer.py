#!/usr/bin/env python3
"""Makes the tokenizer of the tiny recipe: DeepSeek-V4's tokenizer.json in 64 ids.

  0..2    beginning, end and padding, flagged special as in V4
  3..56   one token for each character: digits, signs, lower-case letters, space, newline; no merges
  57..63  added tokens: \\boxed{ and V4's chat markers, with V4's exact strings

Same pre-tokenizer, decoder and matching of added tokens as V4. Digits are single tokens, so that

  14,19,26\\boxed{26} <end>   is 13 tokens: 1 4 , 1 9 , 2 6 \\boxed{ 2 6 } <end>
  \\boxed{24} <end>           is  5 tokens: \\boxed{ 2 4 } <end>

\\boxed{ must be an added token: the pre-tokenizer cuts between \\boxed and {, where no merge reaches.
There are not tokens for all 256 bytes, so text outside the alphabet cannot be encoded and is refused.
The same bytes on every run.
"""
import argparse
import json
import os

BAR, LOW = "\uff5c", "\u2581"
SPECIAL = [f"<{BAR}begin{LOW}of{LOW}sentence{BAR}>", f"<{BAR}end{LOW}of{LOW}sentence{BAR}>",
           f"<{BAR}{LOW}pad{LOW}{BAR}>"]
CHARACTERS = "0123456789+-*/=,.(){}\\<?!: \nabcdefghijklmnopqrstuvwxyz"
MARKERS = ["\\boxed{", f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>", "<think>", "</think>", f"{BAR}DSML{BAR}",
           f"<{BAR}latest_reminder{BAR}>"]
SPELLED = {" ": "\u0120", "\n": "\u010a"}  # the byte alphabet's stand-ins; the rest spell themselves
PATTERNS = [
    "\\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]


def added_token(token_id, content, special):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": not special, "special": special}


def tokenizer_json():
    characters = [SPELLED.get(c, c) for c in CHARACTERS]
    vocabulary = {token: i for i, token in enumerate(SPECIAL + characters)}
    added = [added_token(i, token, True) for i, token in enumerate(SPECIAL)]
    added += [added_token(len(vocabulary) + i, token, False) for i, token in enumerate(MARKERS)]
    assert len(vocabulary) + len(MARKERS) == 64
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in PATTERNS]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": []},
    }


def tokenizer_config():
    return {"add_bos_token": False, "add_eos_token": False, "bos_token": SPECIAL[0], "eos_token": SPECIAL[1],
            "pad_token": SPECIAL[1], "clean_up_tokenization_spaces": False, "model_max_length": 1024,
            "tokenizer_class": "PreTrainedTokenizerFast"}


def generation_config():
    return {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0, "top_p": 1.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", required=True, help="directory for the three files")
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    files = {"tokenizer": tokenizer_json(), "tokenizer_config": tokenizer_config(),
             "generation_config": generation_config()}
    for name, content in files.items():
        with open(os.path.join(args.output, name + ".json"), "w", encoding="ascii") as out:
            out.write(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
