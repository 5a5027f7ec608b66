#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/loss_scale.json`: the factors that `torch.amp.GradScaler` has after steps of which some
overflow."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

OUTPUT = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/loss_scale.json"
WINDOW = 5


def main() -> None:
    random.seed(3)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=WINDOW)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    overflows, scales = [], []
    for step in range(80):
        # Runs of both kinds, longer and shorter than the window.
        overflow = step in (0, 1) or random.random() < 0.15
        scaler.scale((weight * (float("inf") if overflow else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        overflows.append(overflow)
        scales.append(scaler.get_scale())
    OUTPUT.write_text(json.dumps({"window": WINDOW, "overflows": overflows, "scales": scales}) + "\n")


if __name__ == "__main__":
    main()
