#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/schedules.safetensors`: the learning rate of each of 1,000 steps by transformers'
schedules, and by PyTorch's ReduceLROnPlateau after each of 1,000 losses."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import get_scheduler

FILE = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/schedules.safetensors"
STEPS = 1000
LEARNING_RATE = 2e-4
# Name, type, warm-up steps, settings: as in daemon/engine/train/tests/schedules.rs.
CASES = [
    ("constant", "constant", 0, {}),
    ("constant_with_warmup", "constant_with_warmup", 50, {}),
    ("linear", "linear", 50, {}),
    ("linear_ratio", "linear", math.ceil(0.0333 * STEPS), {}),
    ("cosine", "cosine", 50, {}),
    ("cosine_waves", "cosine", 50, {"num_cycles": 1.75}),
    ("cosine_with_restarts", "cosine_with_restarts", 50, {"num_cycles": 4}),
    ("cosine_with_min_lr", "cosine_with_min_lr", 50, {"min_lr": 2e-5}),
    ("cosine_with_min_lr_rate", "cosine_with_min_lr", 50, {"min_lr_rate": 0.1, "num_cycles": 1.5}),
    ("polynomial", "polynomial", 50, {"power": 2.5, "lr_end": 1e-6}),
    ("polynomial_default", "polynomial", 0, {}),
    ("inverse_sqrt", "inverse_sqrt", 50, {}),
    ("inverse_sqrt_timescale", "inverse_sqrt", 0, {"timescale": 300}),
    ("warmup_stable_decay", "warmup_stable_decay", 50, {"num_decay_steps": 200}),
    (
        "warmup_stable_decay_curves",
        "warmup_stable_decay",
        100,
        {
            "num_decay_steps": 300,
            "num_stable_steps": 400,
            "warmup_type": "cosine",
            "decay_type": "1-sqrt",
            "min_lr_ratio": 0.1,
        },
    ),
]
PLATEAUS = {
    "reduce_lr_on_plateau": {"factor": 0.8, "patience": 3, "cooldown": 2, "min_lr": 1e-5},
    "reduce_lr_on_plateau_abs": {
        "factor": 0.5,
        "patience": 0,
        "threshold": 0.05,
        "threshold_mode": "abs",
        "eps": 1e-6,
    },
}


def main() -> None:
    rates = {name: schedule(kind, warmup, settings) for name, kind, warmup, settings in CASES}
    losses = [2 * math.exp(-step / 150) + 0.02 * math.sin(step) + step / 2000 for step in range(STEPS)]
    rates |= {name: plateau(losses, settings) for name, settings in PLATEAUS.items()}
    rates["plateau_losses"] = losses
    save_file({name: torch.tensor(values, dtype=torch.float64) for name, values in rates.items()}, FILE)
    FILE.chmod(0o644)
    print({name: [values[0], values[STEPS // 2], values[-1]] for name, values in rates.items()})


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LEARNING_RATE)


def schedule(kind: str, warmup: int, settings: dict) -> list[float]:
    stepped = optimizer()
    scheduler = get_scheduler(kind, stepped, warmup, STEPS, scheduler_specific_kwargs=settings)
    rates = []
    for _ in range(STEPS):
        rates.append(stepped.param_groups[0]["lr"])
        stepped.step()
        scheduler.step()
    return rates


def plateau(losses: list[float], settings: dict) -> list[float]:
    stepped = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(stepped, **settings)
    rates = []
    for loss in losses:
        scheduler.step(loss)
        rates.append(stepped.param_groups[0]["lr"])
    return rates


if __name__ == "__main__":
    main()
