#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/continual.safetensors`: six steps of the tiny llama that are not to forget, in PyTorch and PEFT.

`lwf`: all weights, held to what the model said before the first step (arXiv 1606.09282). `olora`: a second LoRA pair on every layer
beside the frozen ones of `tiny-llama/adapter`, by the loss of the method's own code (arXiv 2310.14152, `uie_trainer_lora.py`);
its logits at the end are those of one PEFT adapter of both ranks.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from llama import FOLDER
from lora_sft import Sequence, logits_of, loss_of
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

OUTPUT = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/continual.safetensors"
LEARNING_RATE = 2e-3
STEPS = 6
LAMBDA, TEMPERATURE = 1.5, 2.0
LAMBDA_1, LAMBDA_2 = 0.02, 0.05


def load():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").train()


def steps(parameters: list, loss_of_step) -> tuple[list, list]:
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of_step()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        optimizer.step()
    return losses, norms


def lwf(batch: list[Sequence]) -> dict:
    model = load()
    before = copy.deepcopy(model).eval()

    def divergence():
        total = 0.0
        for sequence in batch:
            ids, labels = torch.tensor([sequence.ids]), torch.tensor(sequence.labels[1:])
            target = labels >= 0
            with torch.no_grad():
                said = F.softmax(before(ids).logits[0, :-1][target] / TEMPERATURE, -1)
            says = F.log_softmax(model(ids).logits[0, :-1][target] / TEMPERATURE, -1)
            total += TEMPERATURE**2 * F.kl_div(says, said, reduction="sum")
        return total / sum(sequence.target_tokens for sequence in batch)

    losses, norms = steps(list(model.parameters()), lambda: loss_of(model, batch) + LAMBDA * divergence())
    print("lwf", losses, norms)
    return {"lwf.loss": losses, "lwf.grad_norm": norms, "lwf.final": model.get_parameter("model.layers.1.mlp.up_proj.weight")}


def olora(batch: list[Sequence]) -> dict:
    torch.manual_seed(7)
    model = PeftModel.from_pretrained(load(), FOLDER / "adapter", adapter_name="old").train()
    config = model.peft_config["old"]
    model.add_adapter("new", LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=config.target_modules))
    model.base_model.set_adapter(["old", "new"])
    layers = {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    tensors = {f"olora.start.{name}": layer.lora_A["new"].weight.detach().clone() for name, layer in layers.items()}
    new = [pair["new"].weight for layer in layers.values() for pair in (layer.lora_A, layer.lora_B)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".new." in name)

    def penalty():
        products = [layer.lora_A["old"].weight @ layer.lora_A["new"].weight.T for layer in layers.values()]
        orthogonal = sum(product.abs().sum() for product in products)
        return LAMBDA_1 * orthogonal + LAMBDA_2 * sum(torch.norm(parameter, p=2) for parameter in new)

    losses, norms = steps(new, lambda: loss_of(model, batch) + penalty())
    print("olora", losses, norms)
    both = [logits_of(model, sequence.ids) for sequence in batch]
    rank, alpha = 2 * config.r, 2 * config.lora_alpha
    joined = get_peft_model(load(), LoraConfig(r=rank, lora_alpha=alpha, target_modules=config.target_modules))
    for name, layer in joined.base_model.model.named_modules():
        if hasattr(layer, "lora_A"):
            parts = layers[name]
            layer.lora_A["default"].weight.data = torch.cat([parts.lora_A[which].weight for which in ("old", "new")], 0)
            layer.lora_B["default"].weight.data = torch.cat([parts.lora_B[which].weight for which in ("old", "new")], 1)
    for index, (sequence, expected) in enumerate(zip(batch, both)):
        tensors[f"olora.logits.{index}"] = logits_of(joined, sequence.ids)
        assert (tensors[f"olora.logits.{index}"] - expected).abs().max() < 1e-4
    for name, layer in layers.items():
        if name.startswith("model.layers.1."):
            tensors[f"olora.final.{name}.lora_A"] = layer.lora_A["new"].weight
            tensors[f"olora.final.{name}.lora_B"] = layer.lora_B["new"].weight
    return tensors | {"olora.loss": losses, "olora.grad_norm": norms}


def main() -> None:
    torch.set_num_threads(1)
    goldens = load_file(FOLDER / "goldens.safetensors")
    batch = [Sequence(goldens[f"ids.{i}"].tolist(), goldens[f"labels.{i}"].tolist()) for i in range(2)]
    tensors = lwf(batch) | olora(batch)
    as_tensor = lambda value: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value.detach()  # noqa: E731
    save_file({name: as_tensor(value).contiguous() for name, value in tensors.items()}, OUTPUT)
    OUTPUT.chmod(0o644)


if __name__ == "__main__":
    main()
