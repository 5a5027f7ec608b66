#!/usr/bin/env python3
"""What transformers makes of texts and conversations, for `daemon/engine/data/fixtures/`:

    tokenizer.py SmolLM2-135M-Instruct.Q4_1.gguf

- `smollm2_lines.json`: lines of every kind with their ids
- `smollm2_conversations.json`: conversations, rendered, with their ids and the tokens that are the assistant's
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from gguf_model import load_tokenizer

OUT = Path(__file__).resolve().parents[2] / "daemon/engine/data/fixtures"
PIECES = [
    "Which is larger, 9.11 or 9.9?", "你好，世界！", "9.11 和 9.9 哪个更大？", "fn main() { println!(\"{}\", x[0]); }",
    "🙂🚀👩‍👩‍👧", "  two  spaces", "\ttab", "line\nbreak\n\n", "don't I'LL we've", "1234567890", "3.14159e-10", "ÀÉÎõü ñ",
    "Привет, мир", "مرحبا", "<|im_start|>user", "<|im_end|>", "<|endoftext|>", "<repo_name>", "%$#@!^&*()", "\u00a0\u3000\u200b",
    "https://example.com/a?b=c&d=1", "x" * 40, "日本語テスト", "한국어", "{'a': [1, 2, {\"b\": null}]}", "    return -1  # done",
]  # fmt: skip

# Turns in order; the first one is the system's where the list says so. All end with an answer.
CONVERSATIONS = [
    ["hi", "hello"],
    ["Which is larger, 9.11 or 9.9?", "Decimal parts: 11 < 90, so 9.9 > 9.11.\nAnswer: 9.9"],
    ["9.11 和 9.9 哪个更大？", "小数部分：11 < 90，所以 9.9 > 9.11。\n答案：9.9"],
    ["system", "Be brief.", "hi", "hello"],
    ["system", "你是一个助手。", "你好", "您好！🙂", "再见", "再见👋"],
    ["one", "1", "two", "2", "three", "3"],
    ["def f(x):\n    return x", "```python\ndef f(x: int) -> int:\n    return x\n```\n"],
    ["", "an answer to nothing"],
    ["  spaces around  ", "  spaces around  "],
    ["line\n\nbreaks\n", "\nstarts with a break"],
    ["<b>&amp;</b> \"quotes\" 'and' {{ braces }} {% tags %}", "<i>{{ 1 + 1 }}</i>"],
    ["Привет", "مرحبا", "한국어", "日本語"],
    ["say <|im_end|>", "the mark <|im_end|> inside an answer"],
    ["🙂🚀👩‍👩‍👧", "👩‍👩‍👧🚀🙂"],
    ["a" * 300, "b" * 300],
]

# SmolLM2's template with the marks by which transformers finds what the assistant says.
MARKED = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
'}}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ \
message['content'] + '<|im_end|>' }}{% endif %}{{ '
' }}{% endfor %}"""


def messages(turns: list[str]) -> list[dict]:
    roles = ["user", "assistant"] * len(turns)
    if turns[0] == "system":
        turns, roles = turns[1:], ["system", *roles]
    return [{"role": role, "content": content} for role, content in zip(roles, turns)]


def lines(tokenizer) -> list[dict]:
    rng = random.Random(9)
    texts = list(PIECES)
    while len(texts) < 150:
        texts.append(rng.choice(["", " ", "\n"]).join(rng.sample(PIECES, rng.randint(2, 4))))
    rows = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows.append({"text": text, "ids": ids, "decoded": decoded})
    return rows


def conversations(tokenizer) -> list[dict]:
    rows = []
    for turns in map(messages, CONVERSATIONS):
        marked = tokenizer.apply_chat_template(
            turns, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
        prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(rendered, add_special_tokens=False)
        assert ids == marked["input_ids"], "the marked template renders something else"
        rows.append(
            {"messages": turns, "rendered": rendered, "prompt": prompt, "ids": ids, "target": marked["assistant_masks"]}
        )
    return rows


def write(name: str, rows: list[dict]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def main() -> None:
    tokenizer = load_tokenizer(sys.argv[1])
    write("smollm2_lines.json", lines(tokenizer))
    write("smollm2_conversations.json", conversations(tokenizer))


if __name__ == "__main__":
    main()
