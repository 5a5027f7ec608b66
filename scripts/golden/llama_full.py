#!/usr/bin/env python3
"""Make `full.safetensors` in `daemon/engine/model/fixtures/tiny-llama`: every gradient, and 20 steps of full fine-tuning,
of the model and the rows that llama.py made. Weight decay is on, and leaves norms out as transformers' Trainer does.
"""

from __future__ import annotations

import torch
from llama import FOLDER, SCHEDULE
from lora_sft import Sequence, gradients_of, train
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

WEIGHT_DECAY = 0.1


def main() -> None:
    torch.set_num_threads(1)
    goldens = load_file(FOLDER / "goldens.safetensors")
    batch = [Sequence(goldens[f"ids.{i}"].tolist(), goldens[f"labels.{i}"].tolist()) for i in range(2)]
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").train()
    loss, gradients = gradients_of(model, batch)
    tensors = {"loss": torch.tensor(loss)} | {f"grad.{name}": gradient for name, gradient in gradients.items()}
    for name, values in train(model, batch, SCHEDULE, weight_decay=WEIGHT_DECAY).items():
        tensors[f"train.{name}"] = torch.tensor(values, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if "layers" not in name or "layers.1" in name:
            tensors[f"final.{name}"] = parameter.detach()
    path = FOLDER / "full.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)
    print(f"loss {loss:.6f}, curve {tensors['train.loss'].tolist()}")


if __name__ == "__main__":
    main()
