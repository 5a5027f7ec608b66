#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/unfreezing.safetensors`: eight steps of full fine-tuning of the tiny llama with gradual
unfreezing and discriminative rates (ULMFiT, arXiv 1801.06146): the head alone, from the third step the last block as
well, from the sixth everything. Each group is a parameter group of torch.optim.AdamW, 2.6 times slower than the one above; a
frozen parameter has no gradient, so that AdamW neither changes nor counts it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from llama import FOLDER
from lora_sft import Sequence, loss_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

OUTPUT = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/unfreezing.safetensors"
LEARNING_RATE = 2e-3
DECAY = 2.6
# First step of each group, from 0.
STARTS = [0, 2, 5]
STEPS = 8


def group_of(name: str) -> int:
    if name.startswith("model.norm") or name.startswith("model.embed_tokens"):
        # The embedding table is the output layer.
        return 0
    return 1 if name.startswith("model.layers.2.") else 2


def main() -> None:
    torch.set_num_threads(1)
    goldens = load_file(FOLDER / "goldens.safetensors")
    batch = [Sequence(goldens[f"ids.{i}"].tolist(), goldens[f"labels.{i}"].tolist()) for i in range(2)]
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").train()
    groups: list[list[torch.nn.Parameter]] = [[], [], []]
    for name, parameter in model.named_parameters():
        groups[group_of(name)].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": LEARNING_RATE / DECAY**depth} for depth, group in enumerate(groups)],
        weight_decay=0.0,
    )
    losses, norms = [], []
    for step in range(STEPS):
        for start, group in zip(STARTS, groups):
            for parameter in group:
                parameter.requires_grad_(step >= start)
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimizer.step()
    tensors = {
        "loss": torch.tensor(losses, dtype=torch.float64),
        "grad_norm": torch.tensor(norms, dtype=torch.float64),
    }
    for name, parameter in model.named_parameters():
        if name in ("model.norm.weight", "model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
            tensors[f"final.{name}"] = parameter.detach()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUTPUT)
    OUTPUT.chmod(0o644)
    print(f"curve {losses}")


if __name__ == "__main__":
    main()
