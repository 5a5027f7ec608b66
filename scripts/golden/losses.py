#!/usr/bin/env python3
"""Make `daemon/engine/kernels/fixtures/losses.safetensors`: label smoothing by transformers' LabelSmoother, and R-Drop
(arXiv 2106.14448, its symmetric KL divergence written with torch.nn.functional.kl_div as the authors' code does), with the
gradients of hidden states and output layer. Losses are sums over all targets."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers.trainer_pt_utils import LabelSmoother

OUTPUT = Path(__file__).resolve().parents[2] / "daemon/engine/kernels/fixtures/losses.safetensors"
# The rows of a pair, and the token that both must predict.
PAIRS = [(0, 6, 3), (1, 7, 36), (2, 8, 0), (5, 11, 5)]


def loss_of(hidden, weight, smoothing: float, alpha: float, soft_cap: float | None):
    rows = torch.tensor([row for first, second, _ in PAIRS for row in (first, second)])
    tokens = torch.tensor([token for _, _, token in PAIRS for _ in range(2)])
    logits = hidden[rows] @ weight.T
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    loss = LabelSmoother(epsilon=smoothing)({"logits": logits}, tokens, num_items_in_batch=1)
    if alpha:
        p, q = logits[0::2], logits[1::2]
        p_loss = F.kl_div(F.log_softmax(p, -1), F.softmax(q, -1), reduction="sum")
        q_loss = F.kl_div(F.log_softmax(q, -1), F.softmax(p, -1), reduction="sum")
        loss = loss + alpha * (p_loss + q_loss) / 2
    return loss


def main() -> None:
    torch.manual_seed(3)
    hidden, weight = torch.randn(12, 20), torch.randn(37, 20) * 0.4
    tensors = {"hidden": hidden, "weight": weight}
    for case, smoothing, alpha, soft_cap in [
        ("smoothing", 0.1, 0.0, None), ("consistency", 0.0, 2.0, None), ("both", 0.2, 0.7, 3.0),
    ]:
        h, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
        loss = loss_of(h, w, smoothing, alpha, soft_cap)
        loss.backward()
        record(tensors, case, loss, h, w)
    write(tensors, OUTPUT)


def record(tensors: dict[str, torch.Tensor], case: str, loss, hidden, weight) -> None:
    """A loss and the gradients that it has left."""
    for name, tensor in [("loss", loss.detach().reshape(1)), ("hidden", hidden.grad), ("weight", weight.grad)]:
        tensors[f"{case}.{name}"] = tensor.float().contiguous()


def write(tensors: dict[str, torch.Tensor], output: Path) -> None:
    save_file(tensors, output)
    output.chmod(0o644)
    print({name: tensor.item() for name, tensor in tensors.items() if name.endswith(".loss")})


if __name__ == "__main__":
    main()
