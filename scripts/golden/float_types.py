#!/usr/bin/env python3
"""Make `daemon/engine/weights/fixtures/float_types.safetensors`: every type of floats, and the same in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

FILE = Path(__file__).resolve().parents[2] / "daemon/engine/weights/fixtures/float_types.safetensors"


def main() -> None:
    values = [0.0, -0.0, 1.0, -2.5, 3.14159265358979, 1e-45, 65504.0, float("inf")]
    codes = torch.arange(256, dtype=torch.uint8)
    tensors = {
        "F64": torch.tensor(values, dtype=torch.float64),
        "F32": torch.tensor(values),
        "F16": torch.tensor(values).half(),
        "BF16": torch.tensor(values).bfloat16(),
        "F8_E4M3": codes.view(torch.float8_e4m3fn),
        "F8_E5M2": codes.clone().view(torch.float8_e5m2),
    }
    tensors |= {f"{name}.values": tensor.float().clone() for name, tensor in tensors.items()}
    tensors["scaled.weight"] = codes.clone().view(torch.float8_e4m3fn)
    tensors["scaled.weight_scale"] = torch.ones(1)
    save_file(tensors, FILE)


if __name__ == "__main__":
    main()
