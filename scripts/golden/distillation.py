#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/distillation.safetensors`: T²·KL between a teacher's and a model's softened predictions by
torch.nn.functional.kl_div, in both directions, with the gradients of hidden states and output layer. Sums over all targets."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from losses import record, write

OUTPUT = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/distillation.safetensors"
ROWS = torch.tensor([0, 3, 4, 8])
VOCABULARY = 37


def loss_of(hidden, weight, teacher, direction: str, temperature: float, soft_cap: float | None):
    logits = hidden[ROWS] @ weight.T
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    log_q = F.log_softmax(logits[:, :VOCABULARY] / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    # kl_div(input, target) is KL(target‖input).
    pair = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    return temperature**2 * F.kl_div(*pair, reduction="sum", log_target=True)


def main() -> None:
    torch.manual_seed(5)
    tensors = {
        "hidden": torch.randn(9, 20),
        "weight": torch.randn(40, 20) * 0.4,
        "teacher.hidden": torch.randn(9, 12),
        "teacher.weight": torch.randn(VOCABULARY, 12) * 0.6,
    }
    teacher = tensors["teacher.hidden"].double()[ROWS] @ tensors["teacher.weight"].double().T
    for case, direction, temperature, soft_cap in [
        ("forward", "forward", 1.0, None), ("forward_soft", "forward", 2.5, 3.0),
        ("reverse", "reverse", 1.0, None), ("reverse_soft", "reverse", 2.5, 3.0),
    ]:
        hidden, weight = (tensors[name].double().requires_grad_() for name in ("hidden", "weight"))
        loss = loss_of(hidden, weight, teacher, direction, temperature, soft_cap)
        loss.backward()
        record(tensors, case, loss, hidden, weight)
    write(tensors, OUTPUT)


if __name__ == "__main__":
    main()
