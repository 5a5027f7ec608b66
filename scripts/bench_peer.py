#!/usr/bin/env python3
"""One fine-tuning job in PyTorch + transformers + PEFT: the peer that `scripts/bench` measures.

    python bench_peer.py MODEL.gguf JOB.json

JOB.json: `rows` ({"ids", "targets"}, the same at every step), `pack_len` (tokens of a pack, or null for one row a
sequence), `adapter` (a PEFT folder to start from, or null to train every weight), `precision` (fp32 or bf16),
`learning_rate`, `warmup_steps`, `steps`, `threads`, `slowest_rate` (tokens a second, or null:
where the first row alone is slower, that is all). `targets[i]` says whether token `i` counts for the loss.

Rows are padded to the longest, as collators do; packs get positions and a mask of their own for each sample. bfloat16 is
how PEFT users have it: the model in bfloat16 under autocast, adapters in float32; a full fine-tuning keeps float32
weights under autocast. This is the bare loop, without a trainer's bookkeeping, and its peak memory leaves out the loading
of the model: both are in the peer's favour. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "golden"))
from gguf_model import load_model
from lora_sft import IGNORE
from peft import PeftModel
from transformers import get_cosine_schedule_with_warmup


def main() -> None:
    job = json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(42)
    bf16 = job["precision"] == "bf16"

    model = load_model(sys.argv[1], attention="sdpa")
    if job["adapter"]:
        model = PeftModel.from_pretrained(model.to(torch.bfloat16) if bf16 else model, job["adapter"], is_trainable=True)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job["learning_rate"], weight_decay=0.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, job["warmup_steps"], job["steps"])
    forget_peak_memory()
    report = {"steps": [], "torch": torch.__version__, "trainable_parameters": sum(p.numel() for p in parameters)}

    def step(rows: list[dict], batch: dict[str, torch.Tensor]) -> dict:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        seconds = time.perf_counter() - start
        targets = int((batch["labels"][:, 1:] != IGNORE).sum())
        return {"loss": loss.item(), "seconds": seconds, "tokens": sum(len(row["ids"]) for row in rows), "target_tokens": targets}

    rows = job["rows"]
    first = step(rows[:1], pad(rows[:1])) if job["slowest_rate"] else None
    if first and first["tokens"] / first["seconds"] < job["slowest_rate"]:
        report["steps"].append(first)
    else:
        batch = pack(rows, job["pack_len"]) if job["pack_len"] else pad(rows)
        report["steps"].extend(step(rows, batch) for _ in range(job["steps"]))
    report["peak_memory_bytes"] = peak_memory()
    print(json.dumps(report))


def labels_of(row: dict) -> list[int]:
    # No token predicts the first of a sample.
    return [IGNORE] + [id if target else IGNORE for id, target in zip(row["ids"][1:], row["targets"][1:])]


def pad(rows: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["ids"]) for row in rows)
    filled = [(row["ids"], labels_of(row), longest - len(row["ids"])) for row in rows]
    return {
        "input_ids": torch.tensor([ids + [0] * gap for ids, _, gap in filled]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * gap for ids, _, gap in filled]),
        "labels": torch.tensor([labels + [IGNORE] * gap for _, labels, gap in filled]),
    }


def pack(rows: list[dict], length: int) -> dict[str, torch.Tensor]:
    packs: list[list[dict]] = []
    for row in sorted(rows, key=lambda row: -len(row["ids"])):
        size = len(row["ids"])
        fitting = [p for p in packs if sum(len(r["ids"]) for r in p) + size <= length]
        if fitting:
            max(fitting, key=lambda p: sum(len(r["ids"]) for r in p)).append(row)
        else:
            packs.append([row])
    batch = {name: torch.zeros(len(packs), length, dtype=torch.long) for name in ("input_ids", "position_ids")}
    batch["labels"] = torch.full((len(packs), length), IGNORE)
    # Each token sees itself, so that padding has something to attend to.
    mask = torch.eye(length, dtype=torch.bool).repeat(len(packs), 1, 1, 1)
    for index, rows_of_pack in enumerate(packs):
        start = 0
        for row in rows_of_pack:
            end = start + len(row["ids"])
            batch["input_ids"][index, start:end] = torch.tensor(row["ids"])
            batch["position_ids"][index, start:end] = torch.arange(end - start)
            batch["labels"][index, start:end] = torch.tensor(labels_of(row))
            mask[index, 0, start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
            start = end
    return batch | {"attention_mask": mask}


def forget_peak_memory() -> None:
    """Set the kernel's high-water mark back to what is resident now (Linux, proc(5): clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
