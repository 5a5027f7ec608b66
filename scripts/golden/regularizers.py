#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/regularizers.safetensors`: six steps of full fine-tuning of the tiny llama with each
regulariser, in PyTorch. Masks and noise come from the same generator as ours (SplitMix64, seeded by FNV-1a of a weight's
name), so that the numbers can be compared; what is done with them is written as in the papers.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from llama import FOLDER
from lora_sft import Sequence, loss_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.trainer_pt_utils import LabelSmoother

OUTPUT = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/regularizers.safetensors"
LEARNING_RATE = 2e-3
STEPS = 6
MASK = (1 << 64) - 1


def uniform(seed: int, first: int, count: int) -> np.ndarray:
    """24 bits of SplitMix64 at each index, in 0..1."""
    with np.errstate(over="ignore"):
        index = np.arange(first + 1, first + count + 1, dtype=np.uint64)
        z = np.uint64(seed & MASK) + index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def mixout(model, batch, seed, start, p=0.3):
    """(M⊙w + (1 − M)⊙u − p·u) / (1 − p) (arXiv 1909.11299)."""
    mixed = {}
    for name, weight in model.named_parameters():
        if weight.ndim != 2 or "layers" not in name:
            continue
        of_name = seed ^ 0x84E22325CBF29CE4
        for byte in name.encode():
            of_name = ((of_name ^ byte) * 0x100000001B3) & MASK
        keeps = torch.tensor(uniform(of_name, 0, weight.numel()) >= np.float32(p)).reshape(weight.shape).float()
        mixed[name] = (keeps * weight + (1 - keeps) * start[name] - p * start[name]) / (1 - p)

    class Mixed:
        def __call__(self, **inputs):
            return torch.func.functional_call(model, mixed, kwargs=inputs)

    return loss_of(Mixed(), batch)


def neftune(model, batch, seed, _start, alpha=5.0):
    """Uniform noise in ±α/√(L·d) on the embeddings (arXiv 2310.05914)."""
    total, first = 0.0, 0
    for sequence in batch:
        embeddings = model.get_input_embeddings()(torch.tensor([sequence.ids]))
        length, width = embeddings.shape[1:]
        noise = 2 * uniform(seed ^ 0xD6E8FEB86659FD93, first, length * width) - 1
        first += length * width
        noise = torch.tensor(noise).reshape(1, length, width) * (alpha / math.sqrt(length * width))
        logits = model(inputs_embeds=embeddings + noise).logits[0, :-1]
        total += F.cross_entropy(logits, torch.tensor(sequence.labels[1:]), reduction="sum")
    return total / sum(sequence.target_tokens for sequence in batch)


def l2_sp(model, batch, _seed, start, alpha=0.5):
    """α/2·‖w − w₀‖² (arXiv 1802.01483)."""
    return loss_of(model, batch) + alpha / 2 * sum(((p - start[n]) ** 2).sum() for n, p in model.named_parameters())


def smoothing(model, batch, _seed, _start):
    rows = [(model(input_ids=torch.tensor([s.ids])).logits, torch.tensor([s.labels])) for s in batch]
    count = sum(sequence.target_tokens for sequence in batch)
    return sum(
        LabelSmoother(epsilon=0.1)({"logits": logits}, labels, shift_labels=True, num_items_in_batch=count)
        for logits, labels in rows
    )


def main() -> None:
    torch.set_num_threads(1)
    goldens = load_file(FOLDER / "goldens.safetensors")
    batch = [Sequence(goldens[f"ids.{i}"].tolist(), goldens[f"labels.{i}"].tolist()) for i in range(2)]
    tensors = {}
    for name, objective in [("mixout", mixout), ("neftune", neftune), ("l2_sp", l2_sp), ("smoothing", smoothing)]:
        model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").train()
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        losses, norms = [], []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = objective(model, batch, 1000 + step, start)
            loss.backward()
            losses.append(loss.item())
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
            optimizer.step()
        tensors[f"{name}.loss"] = torch.tensor(losses, dtype=torch.float64)
        tensors[f"{name}.grad_norm"] = torch.tensor(norms, dtype=torch.float64)
        tensors[f"{name}.final"] = model.get_parameter("model.layers.1.mlp.up_proj.weight").detach().clone()
        print(name, losses, norms)
    save_file(tensors, OUTPUT)
    OUTPUT.chmod(0o644)


if __name__ == "__main__":
    main()
