#!/usr/bin/env python3
"""What transformers renders from chat templates, for `daemon/engine/data/fixtures/chat_templates.json`:

    chat_templates.py [FOLDER]

The templates are those in `daemon/engine/data/templates/` and some that use what other models' templates use. For each: the
rendered text of every conversation, with and without the mark where the assistant begins, or why it was refused; and where
the template marks what the assistant says, the bytes of it.

With FOLDER, the templates in it (`*.jinja`: published ones, which are not in the repository) are rendered instead, into
`FOLDER/chat_templates.json`; then

    JUSTTRAIN_TEMPLATES=FOLDER cargo test --release -p justtrain-data --test chat_templates -- --ignored
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jinja2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

DATA = Path(__file__).resolve().parents[2] / "daemon/engine/data"

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers, “exactly” <b>.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number", "default": 1e-07}, "b": {"type": "number", "enum": [1, 2.0, None]}},
            "required": ["a", "b"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


def call(name: str, **arguments) -> dict:
    return {"type": "function", "id": "abc123def", "function": {"name": name, "arguments": arguments}}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def tool(text: str) -> dict:
    return {"role": "tool", "content": text, "name": "add", "tool_call_id": "abc123def"}


CASES = [
    {"messages": [user("9.11 和 9.9 哪个更大？"), assistant("9.9 🙂")]},
    {"messages": [system("Be brief. "), user(" hi\n"), assistant(" hello\n")]},
    {"messages": [user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f")]},
    {"messages": [system("S"), user("a"), assistant("b"), user("<b>&amp; \"q\" 'r' {{ x }}"), assistant("{% y %}")]},
    {"messages": [system("S"), user("1+1?"), assistant("2")], "tools": [ADD, TIME]},
    {"messages": [user("1+1?"), {"role": "assistant", "tool_calls": [call("add", a=1, b=1)]}, tool("2"), assistant("It is 2.")], "tools": [ADD]},
    {
        "messages": [
            system("S"), user("1+1, 2+2?"), assistant("I'll add.", tool_calls=[call("add", a=1, b=1), call("add", a=2.5, b="é\n")]),
            tool("2"), tool("4"), assistant("2 and 4."), user("thanks"), assistant("welcome"),
        ],
        "tools": [ADD, TIME],
    },
    {"messages": [user("a"), assistant("<think>\nwhy\n</think>\n\nb"), user("c"), assistant("<think>\nhow\n</think>\n\nd")]},
    {"messages": [user("a"), assistant("b", reasoning_content="because\n")]},
    {"messages": [user("a"), assistant("b"), assistant("c")]},
]  # fmt: skip

# What templates print and ask, where Jinja's values and minijinja's could differ.
KINDS = {
    "python": """{{ true }} {{ none }} {{ 1.0 }} {{ 1e-7 }} {{ tools }} {{ [1, 'a', none, {'b': false}] }} {{ 7 // 2 }} {{ 7 / 2 }}
{{ messages[0].content.upper().title().startswith('A') }} {{ 'a,b,,c'.split(',') }} {{ ' x '.strip() ~ 'y'.rstrip('y') }}
{{ 'aXbX'.replace('X', '-', 1) }} {{ messages | map(attribute='role') | join('/') }} {{ messages[::-1][0].role }} {{ messages[-1].content[:1] }}
{%- for key, value in {'k': 1, 'l': 'm'}.items() %} {{ key }}={{ value }}{% endfor %} {{ 'é' | tojson(ensure_ascii=true) }}
{{ {'b': 1, 'a': [1, {}]} | tojson(indent=2, sort_keys=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }} {{ {'a': 1}.get('b', 2) }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'x' in undefined_thing }} {{ undefined_thing }}|{{ unknown is defined }}
{{ messages is sequence }} {{ 'a' is iterable }} {{ {} is sequence }} {{ none is iterable }} {{ undefined_thing is iterable }} {{ 3 is sequence }} {{ 'a' is string }} {{ {} is mapping }} {{ messages | length > 1 and not tools }} {{ loop is defined }}""",
    "controls": """{% macro turn(role, text='') %}<{{ role }}>{{ text }}{% endmacro %}
{%- set ns = namespace(count=0, last='') %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {%- if loop.index > 4 %}{% break %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- turn(message.role, message.content | default('-', true) | trim) }}{{ loop.nextitem.role if loop.nextitem is defined else '.' }}
{%- endfor %}
{{ ns.count }}{% if documents %}{% for d in documents %}[{{ d.title }}: {{ d.text }}]{% endfor %}{% endif %}
  {% if add_generation_prompt %}
  <assistant>
  {% endif %}
{{ raise_exception('refused: ' ~ ns.count) if ns.count > 3 else '' }}
""",
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "templates"
    templates = {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    if len(sys.argv) == 1:
        templates |= KINDS
    rows = []
    for name, source in templates.items():
        cases = [render(source, case, prompt) for case in CASES for prompt in (False, True)]
        rows.append({"name": name, "source": source, "cases": cases})
    out = folder if len(sys.argv) > 1 else DATA / "fixtures"
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (out / "chat_templates.json").write_text(f"[\n{text}\n]\n")


def render(source: str, case: dict, prompt: bool) -> dict:
    case = {"documents": [{"title": "T", "text": "D"}] if prompt else None, **case}
    result = {**case, "add_generation_prompt": prompt}
    options = {
        "chat_template": source, "tools": case.get("tools"), "documents": case["documents"], "bos_token": "<s>", "eos_token": "</s>",
    }  # fmt: skip
    try:
        (text,), (said,) = render_jinja_template(
            [case["messages"]], add_generation_prompt=prompt, return_assistant_tokens_mask=True, **options
        )
        result["rendered"] = text
        if "{%- generation" in source or "{% generation" in source:
            result["said"] = [[len(text[:start].encode()), len(text[:end].encode())] for start, end in said]
            check_mask(source, case, text, said)
    except (jinja2.TemplateError, TypeError) as error:
        result["refused"] = str(error)
    return result


def check_mask(source: str, case: dict, text: str, said: list) -> None:
    """The ranges are what `return_assistant_tokens_mask` makes its mask of: on a tokenizer of bytes, token by token."""
    tokenizer = Tokenizer(models.BPE({byte: id for id, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    encoded = fast.apply_chat_template(
        case["messages"], tools=case.get("tools"), documents=case["documents"], chat_template=source, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    if fast.decode(encoded["input_ids"]) != text:
        return  # transformers leaves keys without a value out
    marked = fast.decode([id for id, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask])
    assert marked == "".join(text[start:end] for start, end in said), (marked, said)


if __name__ == "__main__":
    main()
