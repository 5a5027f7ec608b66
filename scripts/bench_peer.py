#!/usr/bin/env python3
"""One LoRA fine-tuning job in PyTorch + transformers + PEFT: the peer that `scripts/bench` measures.

    python bench_peer.py MODEL.gguf BATCHES.json --rank 16 --learning-rate 1e-3 --warmup-steps 3 --threads 2

BATCHES.json holds what each step learns from, one list of rows a step:

    {"steps": [[{"ids": [1, 2, …], "targets": [false, true, …]}, …], …]}

`targets[i]` says whether token `i` counts for the loss. The rows of a step are padded to the longest, as collators do.
This is the bare loop, without a trainer's bookkeeping, and its peak memory leaves out the loading of the model: both are
in the peer's favour. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "golden"))
from gguf_model import load_model
from lora_sft import IGNORE, attach_lora
from transformers import get_cosine_schedule_with_warmup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("batches", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(42)

    steps = [pad(rows) for rows in json.loads(arguments.batches.read_text())["steps"]]
    model = attach_lora(load_model(arguments.model, attention="sdpa"), arguments.rank, arguments.alpha)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=0.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, arguments.warmup_steps, len(steps))
    forget_peak_memory()

    report = {"steps": [], "torch": torch.__version__, "trainable_parameters": sum(p.numel() for p in parameters)}
    for batch in steps:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        report["steps"].append(
            {
                "loss": loss.item(),
                "seconds": time.perf_counter() - start,
                "tokens": int(batch["attention_mask"].sum()),
                "target_tokens": int((batch["labels"][:, 1:] != IGNORE).sum()),
            }
        )
    report["peak_memory_bytes"] = peak_memory()
    print(json.dumps(report))


def pad(rows: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for index, row in enumerate(rows):
        length = len(row["ids"])
        ids[index, :length] = torch.tensor(row["ids"])
        mask[index, :length] = 1
        labels[index, :length] = torch.where(torch.tensor(row["targets"]), ids[index, :length], IGNORE)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def forget_peak_memory() -> None:
    """Set the kernel's high-water mark back to what is resident now (Linux, proc(5): clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
