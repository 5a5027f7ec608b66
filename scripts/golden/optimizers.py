#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/optimizers.safetensors`: what a matrix and a vector become in 20 steps of
bitsandbytes' 8-bit AdamW and Lion, transformers' Adafactor, PyTorch's SGD and Muon, and the GaLore of its authors;
and a running mean of weights by PyTorch.

Weights and gradients are formulas of place and step, so that the file holds results only. The CPU build of bitsandbytes
looks 8-bit codes up in a table that is too coarse for small numbers, up to 7 codes off the nearest; its CUDA build and its
definition in Python take the nearest, and so does this script. PyTorch's Muon computes in bfloat16, this script in float32.
GaLore's singular vectors have the signs that LAPACK happens to give; here the largest number of each is positive.
As in a model, the vector is AdamW's beside Muon and GaLore. GaLore is asked without weight decay, which its authors apply
after the update and PyTorch before.
"""

from __future__ import annotations

from pathlib import Path

import torch
from bitsandbytes.backends.cpu import ops
from bitsandbytes.optim import AdamW8bit, Lion
from galore_torch import GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector
from safetensors.torch import save_file
from torch.optim import SGD, AdamW, Muon, _muon
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from transformers.optimization import Adafactor

FILE = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/optimizers.safetensors"
# Above bitsandbytes' 4096, the least for 8 bits, and no whole number of blocks; and below.
SHAPES = {"matrix": (9, 500), "vector": (40,)}
STEPS = 20
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.1
# Optimisers that look at singular vectors, which are not defined where two values are equal.
DISTINCT = {"muon", "galore_adamw"}


def main() -> None:
    torch.set_num_threads(1)
    ops._quant_blockwise_fp32_direct = quantize_nearest
    GaLoreProjector.get_orthogonal_matrix = singular_vectors_with_signs
    _muon._zeropower_via_newtonschulz = orthogonalize_in_float32
    results = {}
    makers = {
        "adamw_8bit": lambda p: AdamW8bit(p, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        "adafactor": lambda p: Adafactor(
            p, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, scale_parameter=False, relative_step=False
        ),
        "lion": lambda p: Lion(p, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY),
        "sgd": lambda p: SGD(p, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        "sgd_momentum": lambda p: SGD(p, lr=LEARNING_RATE, momentum=0.9),
        "sgd_nesterov": lambda p: SGD(p, lr=LEARNING_RATE, momentum=0.9, nesterov=True),
        "ema": lambda p: SGD(p, lr=LEARNING_RATE, momentum=0.9),
        "muon": lambda p: Both(
            Muon(p[:1], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            AdamW(p[1:], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        ),
        "galore_adamw": lambda p: Both(
            GaLoreAdamW(
                [{"params": p[:1], "rank": 4, "update_proj_gap": 8, "scale": 2.0, "proj_type": "std"}],
                lr=LEARNING_RATE,
                eps=1e-8,
                no_deprecation_warning=True,
            ),
            AdamW(p[1:], lr=LEARNING_RATE, weight_decay=0.0),
        ),
    }
    for name, make in makers.items():
        parameters = {key: torch.nn.Parameter(start(shape)) for key, shape in SHAPES.items()}
        model = torch.nn.ParameterDict(parameters)
        mean = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9))
        optimizer = make(list(parameters.values()))
        for step in range(1, STEPS + 1):
            for key, parameter in parameters.items():
                of = distinct_gradient if key == "matrix" and name in DISTINCT else gradient
                parameter.grad = of(parameter.shape, step)
            optimizer.step()
            mean.update_parameters(model)
        final = mean.module if name == "ema" else model
        results |= {f"{name}.{key}": parameter.detach() for key, parameter in final.items()}
        if name == "adamw_8bit":
            state = optimizer.state[parameters["matrix"]]
            assert state["state1"].dtype == torch.uint8
            assert optimizer.state[parameters["vector"]]["state1"].dtype == torch.float32
    save_file({key: value.contiguous() for key, value in results.items()}, FILE)
    FILE.chmod(0o644)
    print({key: value.flatten()[:3].tolist() for key, value in results.items()})


class Both:
    """Two optimisers that share a model."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    def step(self) -> None:
        for part in self.parts:
            part.step()


def singular_vectors_with_signs(self, weights, rank, type):
    """As `get_orthogonal_matrix` for a wide matrix, but for the signs."""
    assert type == "left"
    vectors = torch.linalg.svd(weights, full_matrices=False)[0][:, :rank]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign()


def orthogonalize_in_float32(grad, ns_coefficients, ns_steps, eps):
    """As `_zeropower_via_newtonschulz`, but for the number format."""
    a, b, c = ns_coefficients
    tall = grad.size(0) > grad.size(1)
    x = grad.T if tall else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def quantize_nearest(numbers, code, absmax_out, codes_out, blocksize) -> None:
    """As the fallback of `quantize_blockwise` in bitsandbytes' `backends/cpu/ops.py`."""
    flat = numbers.flatten()
    blocks = flat.split(blocksize)
    absmax_out.copy_(torch.stack([block.abs().max() for block in blocks]))
    scaled = torch.cat([block * (1 / scale) for block, scale in zip(blocks, absmax_out)]).clamp(-1, 1)
    codes_out.copy_((scaled.unsqueeze(-1) - code).abs().argmin(-1).to(torch.uint8).reshape(numbers.shape))


def start(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.cos(places(shape) * 0.11).float()


def gradient(shape: tuple[int, ...], step: int) -> torch.Tensor:
    """Magnitudes over two decades, so that the exponents of the 8-bit numbers matter."""
    index = places(shape)
    return (torch.sin(index * 0.37 + step) * 10.0 ** -(index % 3)).float()


def distinct_gradient(shape: tuple[int, ...], step: int) -> torch.Tensor:
    """A matrix whose singular values lie apart."""
    index = places(shape)
    return (torch.sin(index**2 * 0.001 + step) * 0.8 ** (index // shape[1])).float()


def places(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


if __name__ == "__main__":
    main()
