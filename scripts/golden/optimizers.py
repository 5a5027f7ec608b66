#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/optimizers.safetensors`: what bitsandbytes' 8-bit AdamW and transformers' Adafactor
make of a matrix and a vector in 20 steps.

Weights and gradients are formulas of place and step, so that the file holds results only. The CPU build of bitsandbytes
looks 8-bit codes up in a table that is too coarse for small numbers, up to 7 codes off the nearest; its CUDA build and its
definition in Python take the nearest, and so does this script.
"""

from __future__ import annotations

from pathlib import Path

import torch
from bitsandbytes.backends.cpu import ops
from bitsandbytes.optim import AdamW8bit
from safetensors.torch import save_file
from transformers.optimization import Adafactor

FILE = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/optimizers.safetensors"
# Above bitsandbytes' 4096, the least for 8 bits, and no whole number of blocks; and below.
SHAPES = {"matrix": (9, 500), "vector": (40,)}
STEPS = 20
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.1


def main() -> None:
    torch.set_num_threads(1)
    ops._quant_blockwise_fp32_direct = quantize_nearest
    results = {}
    makers = {
        "adamw_8bit": lambda p: AdamW8bit(p, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        "adafactor": lambda p: Adafactor(
            p, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, scale_parameter=False, relative_step=False
        ),
    }
    for name, make in makers.items():
        parameters = {key: torch.nn.Parameter(start(shape)) for key, shape in SHAPES.items()}
        optimizer = make(list(parameters.values()))
        for step in range(1, STEPS + 1):
            for parameter in parameters.values():
                parameter.grad = gradient(parameter.shape, step)
            optimizer.step()
        results |= {f"{name}.{key}": parameter.detach() for key, parameter in parameters.items()}
        if name == "adamw_8bit":
            state = optimizer.state[parameters["matrix"]]
            assert state["state1"].dtype == torch.uint8
            assert optimizer.state[parameters["vector"]]["state1"].dtype == torch.float32
    save_file({key: value.contiguous() for key, value in results.items()}, FILE)
    FILE.chmod(0o644)
    print({key: value.flatten()[:3].tolist() for key, value in results.items()})


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


def places(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


if __name__ == "__main__":
    main()
