#!/usr/bin/env python3
"""What transformers makes of texts and conversations, for `daemon/engine/data/fixtures/`:

    tokenizer.py SmolLM2-135M-Instruct.Q4_1.gguf

- `smollm2_lines.json`: lines of every kind with their ids
- `smollm2_conversations.json`: conversations, rendered, with their ids and the tokens that are the assistant's
- `chat_templates.json`: templates that use what the templates of other models use, rendered or refused
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import jinja2
from gguf_model import load_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

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

TEMPLATES = {
    "llama3": """{{- bos_token }}
{%- if strftime_now is defined %}{{- '(dated)' }}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set ns = namespace(turns=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.turns % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- set ns.turns = ns.turns + 1 %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'assistant') %}
        {% set role = 'model' %}
    {% else %}
        {% set role = message['role'] %}
    {% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{'<start_of_turn>model\\n'}}
{% endif %}
""",
    "qwen3": """{%- if tools %}{{- 'TOOLS' }}{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- 'QUIET' }}{%- endif %}
{%- endif %}
""",
    "json": """{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
{{ message | tojson }}
{{ [message.role, 1, true, none, [], {}] | tojson(indent=2) }}
{{ message.content[:3] }}|{{ message['role'].upper() }}|{{ message.get('name', 'nobody') }}|{{ message.content | length }}
{% endfor %}
{% macro shout(text) %}{{ text | upper }}!{% endmacro %}
{{ shout(messages[-1].role) }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for key, value in messages[0].items() %}{{ key }}={{ value | replace('\\n', ' ') }}{{ ', ' if not loop.last }}{% endfor %}
""",
}  # fmt: skip


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


def chat_templates() -> list[dict]:
    picked = [CONVERSATIONS[index] for index in (1, 4, 8, 10)]
    picked += [["system", "S", "a", "b", "c"], ["a", "<think>\nb\n</think>\n\nc"]]
    rows = []
    for name, source in TEMPLATES.items():
        cases = [render(source, messages(turns), prompt) for turns in picked for prompt in (False, True)]
        rows.append({"name": name, "source": source, "cases": cases})
    return rows


def render(source: str, turns: list[dict], add_generation_prompt: bool) -> dict:
    case = {"messages": turns, "add_generation_prompt": add_generation_prompt}
    try:
        (case["rendered"],), _ = render_jinja_template(
            [turns], chat_template=source, add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>"
        )
    except jinja2.TemplateError as error:
        case["refused"] = str(error)
    return case


def write(name: str, rows: list[dict]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def main() -> None:
    tokenizer = load_tokenizer(sys.argv[1])
    write("smollm2_lines.json", lines(tokenizer))
    write("smollm2_conversations.json", conversations(tokenizer))
    write("chat_templates.json", chat_templates())


if __name__ == "__main__":
    main()
