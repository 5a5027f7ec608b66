#!/usr/bin/env python3
"""Make `daemon/engine/model/fixtures/classifiers/NAME`: a tiny random classifier of each family with its reference values.

    python classifiers.py [NAME ...]

As families.py does for models of words. README.md lists what is in the folders.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from families import ALPHA, RANK, SCHEDULE, VOCABULARY, finish, save_random_model, without_dropout
from llama import randomise_adapter, save_adapter
from lora_sft import adapter_parameters, optimise
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageClassification, AutoModelForSequenceClassification, BertConfig, LlamaConfig, ViTConfig,
)

ROOT = Path(__file__).resolve().parents[2] / "daemon/engine/model/fixtures/classifiers"
LABELS = ["bad", "good", "so-so"]
TASK = dict(id2label=dict(enumerate(LABELS)), label2id={label: index for index, label in enumerate(LABELS)})
CONFIGS = {
    "bert": lambda: BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY,
        max_position_embeddings=40, initializer_range=0.2, pad_token_id=0, **TASK,
    ),
    # Any decoder can be a classifier.
    "llama": lambda: LlamaConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, **TASK,
    ),
}
CONFIGS["vit"] = lambda: ViTConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=12, patch_size=4,
    initializer_range=0.2, **TASK,
)
LENGTHS = [(17, 17), (9, 4), (1, 1)]
CLASSES = [2, 0, 1]


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CONFIGS:
        torch.manual_seed(11)
        make(name, ROOT / name)


def make(name: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    save_random_model(CONFIGS[name](), folder, auto(name))
    model = without_dropout(auto(name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager"))
    batch = [inputs(name, *lengths) for lengths in LENGTHS]
    tensors = {"classes": torch.tensor(CLASSES)}
    for index, sequence in enumerate(batch):
        if name == "vit":
            tensors[f"pixels.{index}"] = sequence["pixel_values"][0]
            continue
        tensors[f"ids.{index}"] = sequence["input_ids"][0]
        if "token_type_ids" in sequence:
            tensors[f"types.{index}"] = sequence["token_type_ids"][0]
    tensors["logits"] = logits_of(model, batch)
    tensors |= loss_and_gradients(model, batch, "loss")

    linear = [
        module for module, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and module.rsplit(".", 1)[-1] not in ("classifier", "score")
    ]
    # PEFT has no task for images, and so does not know by itself that the head is trained.
    task = dict(modules_to_save=["classifier"]) if name == "vit" else dict(task_type="SEQ_CLS")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=linear, **task)
    tuned = get_peft_model(model, config).train()
    randomise_adapter(tuned)
    save_adapter(tuned, folder / "adapter", name)
    tensors["adapter_logits"] = logits_of(tuned, batch)
    tensors |= loss_and_gradients(tuned, batch, "adapter_loss")
    losses = optimise(tuned, SCHEDULE, lambda: loss_of(tuned, batch))["loss"]
    tensors["train.loss"] = torch.tensor(losses, dtype=torch.float64)
    finish(folder, tensors)


def auto(name: str):
    return AutoModelForImageClassification if name == "vit" else AutoModelForSequenceClassification


def inputs(name: str, length: int, first: int) -> dict[str, torch.Tensor]:
    """A sequence alone, so that there is no padding; its first text ends after `first` tokens. Or an image."""
    if name == "vit":
        return {"pixel_values": torch.randn(1, 3, 12, 12)}
    given = {"input_ids": torch.randint(3, VOCABULARY, (1, length))}
    if name == "bert":
        given["token_type_ids"] = (torch.arange(length) >= first).long()[None]
    return given


def logits_of(model, batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(**sequence).logits for sequence in batch])


def loss_of(model, batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return F.cross_entropy(torch.cat([model(**sequence).logits for sequence in batch]), torch.tensor(CLASSES))


def loss_and_gradients(model, batch: list[dict[str, torch.Tensor]], name: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    gradients = {f"grad.{name}": p.grad.detach().clone() for name, p in adapter_parameters(model).items()}
    model.zero_grad()
    return {name: loss.detach()} | gradients


if __name__ == "__main__":
    main()
