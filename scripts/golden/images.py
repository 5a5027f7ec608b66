#!/usr/bin/env python3
"""Make `daemon/engine/data/fixtures/images/`: four small images and the pixel values that ViTImageProcessor makes of them.

- `grey.png`, `alpha.png`, `wide.png`, `photo.jpg` (turned by its EXIF tag)
- `NAME/preprocessor_config.json`: settings
- `goldens.safetensors`: `NAME.FILE` is `[3, height, width]`
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ViTImageProcessorPil
from transformers.image_utils import load_image

OUT = Path(__file__).resolve().parents[2] / "daemon/engine/data/fixtures/images"
KINDS = {
    "bilinear": dict(size={"height": 24, "width": 24}, resample=2),
    "bicubic": dict(
        size={"height": 20, "width": 28}, resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ),
}


def scene(width: int, height: int, channels: int, noise: float) -> numpy.ndarray:
    """Slopes, a disc with a sharp edge, and noise."""
    rng = numpy.random.default_rng(width)
    y, x = numpy.mgrid[0:height, 0:width]
    disc = 90.0 * ((x - width / 3) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 3) ** 2)
    layers = [120 + 100 * numpy.sin(x / (5 + 3 * c)) * numpy.cos(y / (4 + c)) + disc * (c - 1) for c in range(channels)]
    return numpy.clip(numpy.stack(layers, -1) + rng.normal(0, noise, (height, width, channels)), 0, 255).astype(numpy.uint8)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    Image.fromarray(scene(40, 30, 1, 20)[..., 0]).save(OUT / "grey.png")
    Image.fromarray(scene(37, 51, 4, 20)).save(OUT / "alpha.png")
    Image.fromarray(scene(90, 13, 3, 20)).save(OUT / "wide.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(scene(200, 150, 3, 4)).save(OUT / "photo.jpg", quality=90, exif=turned)
    tensors = {}
    for name, settings in KINDS.items():
        processor = ViTImageProcessorPil(**settings)
        processor.save_pretrained(OUT / name)
        for path in sorted(OUT.glob("*.*g")):
            pixels = processor(load_image(str(path)), return_tensors="pt")["pixel_values"][0]
            tensors[f"{name}.{path.name}"] = pixels.to(torch.float32).contiguous()
    save_file(tensors, OUT / "goldens.safetensors")
    (OUT / "goldens.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
