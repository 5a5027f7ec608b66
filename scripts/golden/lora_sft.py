"""The reference LoRA fine-tuning step, in PyTorch + transformers + PEFT: what llama.py and smollm2.py both record.

Sequences run one at a time and unpadded; the loss is the sum over all target tokens divided by their number, so that
padding, packing and batch layout cannot change it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import get_cosine_schedule_with_warmup

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORE = -100


@dataclass
class Sequence:
    """One training row; `labels[i]` is `ids[i]` where it counts for the loss and -100 elsewhere. `source` is what an encoder reads."""

    ids: list[int]
    labels: list[int]
    source: list[int] = field(default_factory=list)

    @property
    def target_tokens(self) -> int:
        return sum(label != IGNORE for label in self.labels[1:])


@dataclass
class Schedule:
    steps: int
    warmup_steps: int
    learning_rate: float
    max_grad_norm: float = 1.0


def attach_lora(model, rank: int, alpha: int, targets: list[str] = LINEAR_LAYERS):
    """LoRA on every linear layer of the blocks, in training mode, without dropout."""
    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, task_type=task)
    return get_peft_model(model, config).train()


def adapter_parameters(model) -> dict[str, torch.nn.Parameter]:
    """A and B by the names that PEFT writes to `adapter_model.safetensors`."""
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}


def logits_of(model, ids: list[int], source: list[int] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return logits(model, ids, source).contiguous()


def logits(model, ids: list[int], source: list[int] | None = None) -> torch.Tensor:
    """After each token; `source` is what an encoder reads."""
    inputs = dict(input_ids=ids) if not source else dict(input_ids=source, decoder_input_ids=ids)
    return model(**{name: torch.tensor([tokens]) for name, tokens in inputs.items()}).logits[0]


def loss_of(model, batch: list[Sequence]) -> torch.Tensor:
    """Token-weighted mean over the whole batch, natural logarithm."""
    total = sum(sequence.target_tokens for sequence in batch)
    return sum(loss_sum(model, sequence) for sequence in batch) / total


def loss_sum(model, sequence: Sequence) -> torch.Tensor:
    predicted = logits(model, sequence.ids, sequence.source)[:-1]
    return F.cross_entropy(predicted, torch.tensor(sequence.labels[1:]), ignore_index=IGNORE, reduction="sum")


def gradients_of(model, batch: list[Sequence]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    gradients = {name: p.grad.detach().clone() for name, p in adapter_parameters(model).items()}
    model.zero_grad()
    return loss.item(), gradients


def train(model, batch: list[Sequence], schedule: Schedule, weight_decay: float = 0.0) -> dict[str, list[float]]:
    """The same batch at every step."""
    return optimise(model, schedule, lambda: loss_of(model, batch), weight_decay)


def optimise(model, schedule: Schedule, loss_now, weight_decay: float = 0.0) -> dict[str, list[float]]:
    """AdamW; only matrices decay. The norms are those before clipping."""
    parameters = list(adapter_parameters(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=schedule.learning_rate, betas=(0.9, 0.999), eps=1e-8, foreach=False
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, schedule.warmup_steps, schedule.steps)
    curve: dict[str, list[float]] = {"loss": [], "learning_rate": [], "grad_norm": []}
    for _ in range(schedule.steps):
        optimizer.zero_grad()
        loss = loss_now()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, schedule.max_grad_norm)
        curve["loss"].append(loss.item())
        curve["learning_rate"].append(scheduler.get_last_lr()[0])
        curve["grad_norm"].append(norm.item())
        optimizer.step()
        scheduler.step()
    assert all(math.isfinite(loss) for loss in curve["loss"])
    return curve
