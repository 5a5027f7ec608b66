#!/usr/bin/env python3
"""Make `tests/fixtures/smollm2`: reference values of SmolLM2-135M-Instruct, from its GGUF dequantised to float32.

    python smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

The adapter is not stored: `hashed_adapter` below is a formula over integers that any language repeats exactly.
README.md lists what is in the two files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from gguf_model import load_model, load_tokenizer
from lora_sft import (
    IGNORE,
    LINEAR_LAYERS,
    Schedule,
    Sequence,
    adapter_parameters,
    attach_lora,
    gradients_of,
    logits_of,
    loss_of,
    train,
)
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parents[2] / "tests/fixtures/smollm2"
RANK, ALPHA = 8, 16
BOUND_A, BOUND_B = 0.04, 0.03
SCHEDULE = Schedule(steps=20, warmup_steps=3, learning_rate=2e-4)
TOP = 16
NEW_TOKENS = 32
SMALLEST_MARGIN = 0.02
WHOLE_GRADIENTS = [
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.29.self_attn.k_proj.lora_B.weight",
]

CODE = "Explain this:\n```python\ndef f(x):\n\treturn [i ** 2 for i in range(x)]  # squares\n```"
PROMPTS = {
    "en": [{"role": "user", "content": "Which is larger, 9.11 or 9.9?"}],
    "zh": [{"role": "user", "content": "9.11 和 9.9 哪个更大？"}],
    "emoji": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is 🐘👩‍👩‍👧?"},
        {"role": "assistant", "content": "Elephant"},
        {"role": "user", "content": "And 🦊?"},
    ],
    "code": [{"role": "user", "content": CODE}],
    "plants": [{"role": "user", "content": "How do plants make food?"}],
}
GENERATED = ["en", "zh", "plants"]
ROWS = [
    ("Which number is larger: 3.8 or 3.12?", "Compare 3.80 with 3.12: the first decimal is 8 against 1, so 3.8 is larger."),
    ("比较 -7.05 和 -7.5，哪个更大？", "-7.5 离零更远，所以 -7.05 更大。"),
]


def main() -> None:
    torch.set_num_threads(2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(sys.argv[1]), load_tokenizer(sys.argv[1])
    tensors: dict[str, torch.Tensor] = {}
    prompts = []
    for name, messages in PROMPTS.items():
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        prompts.append({"name": name, "messages": messages, "rendered": text, "ids": ids})
        logits = logits_of(model, ids)
        if name == "en":
            tensors["en.last_logits"] = logits[-1].clone()
        top = logits.topk(TOP)
        tensors[f"{name}.top_ids"], tensors[f"{name}.top_logits"] = top.indices.to(torch.int32), top.values
    for prompt in prompts:
        if prompt["name"] in GENERATED:
            prompt["greedy"] = greedy(model, prompt["ids"])
            prompt["greedy_text"] = tokenizer.decode(prompt["greedy"])

    batch = [training_row(tokenizer, *row) for row in ROWS]
    with torch.no_grad():
        base_loss = loss_of(model, batch).item()
    tuned = attach_lora(model, RANK, ALPHA)
    set_hashed_adapter(tuned)
    tensors["en.adapter_last_top_ids"], tensors["en.adapter_last_top_logits"] = adapter_top(tuned, prompts[0]["ids"])
    adapter_loss, gradients = gradients_of(tuned, batch)
    tensors |= {f"grad.{name}": gradients[name].contiguous() for name in WHOLE_GRADIENTS}
    curve = train(tuned, batch, SCHEDULE)

    document = {
        "adapter": {"rank": RANK, "alpha": ALPHA, "bound_a": BOUND_A, "bound_b": BOUND_B, "layers": LINEAR_LAYERS},
        "prompts": prompts,
        "rows": [{"prompt": p, "answer": a, "ids": s.ids, "labels": s.labels} for (p, a), s in zip(ROWS, batch)],
        "base_loss": base_loss,
        "adapter_loss": adapter_loss,
        "gradient_norms": {name: gradient.norm().item() for name, gradient in gradients.items()},
        "schedule": vars(SCHEDULE),
        "train": curve,
    }
    (FOLDER / "goldens.json").write_text(compact(document))
    save_file(tensors, FOLDER / "goldens.safetensors")
    (FOLDER / "goldens.safetensors").chmod(0o644)
    print(json.dumps({k: document[k] for k in ["base_loss", "adapter_loss", "train"]}))
    print("\n".join(p["greedy_text"] for p in prompts if "greedy" in p))


def compact(document: dict) -> str:
    """One line for each entry at the first level and for each element of a list there."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list):
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f"{json.dumps(key)}: [\n  {rows}\n ]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def training_row(tokenizer, prompt: str, answer: str) -> Sequence:
    """The answer and the end-of-turn token after it are targets; the template's last line feed is not."""
    user = [{"role": "user", "content": prompt}]
    head = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(head, add_special_tokens=False)
    answer_ids = tokenizer.encode(answer, add_special_tokens=False) + [tokenizer.eos_token_id]
    tail = tokenizer.encode("\n", add_special_tokens=False)
    whole = tokenizer.apply_chat_template(user + [{"role": "assistant", "content": answer}], tokenize=False)
    assert ids + answer_ids + tail == tokenizer.encode(whole, add_special_tokens=False)
    return Sequence(ids + answer_ids + tail, [IGNORE] * len(ids) + answer_ids + [IGNORE] * len(tail))


def greedy(model, ids: list[int]) -> list[int]:
    """Ends with the end-of-turn token or after `NEW_TOKENS`. Near-ties are refused: rounding would decide them."""
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for index, logits in enumerate(output.logits):
        best, second = logits[0].topk(2).values.tolist()
        assert best - second > SMALLEST_MARGIN, f"a near-tie after {index} tokens"
    return output.sequences[0, len(ids) :].tolist()


def adapter_top(model, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    top = logits_of(model, ids)[-1].topk(TOP)
    return top.indices.to(torch.int32), top.values


def set_hashed_adapter(model) -> None:
    """A and B from integers: tensor number 2·(7·layer + projection) for A, one more for B, in `LINEAR_LAYERS` order."""
    parameters = adapter_parameters(model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            layer = int(name.split(".layers.")[1].split(".")[0])
            projection = LINEAR_LAYERS.index(name.split(".lora_")[0].rsplit(".", 1)[1])
            is_b = ".lora_B." in name
            tensor = 2 * (len(LINEAR_LAYERS) * layer + projection) + is_b
            values = hashed_values(tensor, parameter.numel(), BOUND_B if is_b else BOUND_A)
            parameter.copy_(values.view_as(parameter))


def hashed_values(tensor: int, count: int, bound: float) -> torch.Tensor:
    """Value `i`, in row-major order: `(hash(16384·tensor + i) / 2³¹ − 1) · bound` in float64, then float32."""
    x = torch.arange(count, dtype=torch.int64) + 16384 * tensor
    mask = 0xFFFFFFFF
    x ^= x >> 16
    x = (x * 0x7FEB352D) & mask
    x ^= x >> 15
    x = (x * 0x846CA68B) & mask
    x ^= x >> 16
    return ((x.double() / 2**31 - 1.0) * bound).float()


if __name__ == "__main__":
    main()
