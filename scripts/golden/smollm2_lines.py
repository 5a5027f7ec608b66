#!/usr/bin/env python3
"""Make `daemon/engine/data/fixtures/smollm2_lines.json`: lines of every kind with the ids that transformers gives them.

`smollm2_lines.py SmolLM2-135M-Instruct.Q4_1.gguf`"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from gguf_model import load_tokenizer

OUT = Path(__file__).resolve().parents[2] / "daemon/engine/data/fixtures/smollm2_lines.json"
PIECES = [
    "Which is larger, 9.11 or 9.9?", "你好，世界！", "9.11 和 9.9 哪个更大？", "fn main() { println!(\"{}\", x[0]); }",
    "🙂🚀👩‍👩‍👧", "  two  spaces", "\ttab", "line\nbreak\n\n", "don't I'LL we've", "1234567890", "3.14159e-10", "ÀÉÎõü ñ",
    "Привет, мир", "مرحبا", "<|im_start|>user", "<|im_end|>", "<|endoftext|>", "<repo_name>", "%$#@!^&*()", "\u00a0\u3000\u200b",
    "https://example.com/a?b=c&d=1", "x" * 40, "日本語テスト", "한국어", "{'a': [1, 2, {\"b\": null}]}", "    return -1  # done",
]  # fmt: skip


def main() -> None:
    tokenizer = load_tokenizer(sys.argv[1])
    rng = random.Random(9)
    lines = list(PIECES)
    while len(lines) < 150:
        lines.append(rng.choice(["", " ", "\n"]).join(rng.sample(PIECES, rng.randint(2, 4))))
    rows = []
    for text in lines:
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows.append({"text": text, "ids": ids, "decoded": decoded})
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
