#!/usr/bin/env python3
"""Make `daemon/engine/model/fixtures/tiny-llama`: a random llama of 64 thousand weights with its reference values.

Its weights are spread widely (standard deviation 0.2), so that a wrong head order, rotation or norm moves the logits.
They are stored as bfloat16 and computed with in float32. README.md lists what is in the folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from lora_sft import IGNORE, Schedule, Sequence, adapter_parameters, attach_lora, gradients_of, logits_of, loss_of, train
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).resolve().parents[2] / "daemon/engine/model/fixtures/tiny-llama"
RANK, ALPHA = 4, 8
SCHEDULE = Schedule(steps=20, warmup_steps=3, learning_rate=1e-3)
CONFIG = LlamaConfig(
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=160,
    max_position_embeddings=64,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=2,
)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    shutil.rmtree(FOLDER, ignore_errors=True)
    save_random_model()
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").eval()
    batch = [random_sequence(length=13, prompt=5), random_sequence(length=7, prompt=3)]

    tensors = {}
    for index, sequence in enumerate(batch):
        tensors[f"ids.{index}"] = torch.tensor(sequence.ids)
        tensors[f"labels.{index}"] = torch.tensor(sequence.labels)
        tensors[f"logits.{index}"] = logits_of(model, sequence.ids)
    with torch.no_grad():
        tensors["loss"] = loss_of(model, batch)

    tuned = attach_lora(model, RANK, ALPHA)
    randomise_adapter(tuned)
    save_adapter(tuned, FOLDER / "adapter", "tiny-llama")
    for index, sequence in enumerate(batch):
        tensors[f"adapter_logits.{index}"] = logits_of(tuned, sequence.ids)
    loss, gradients = gradients_of(tuned, batch)
    tensors["adapter_loss"] = torch.tensor(loss)
    tensors |= {f"grad.{name}": gradient for name, gradient in gradients.items()}

    for name, values in train(tuned, batch, SCHEDULE).items():
        tensors[f"train.{name}"] = torch.tensor(values, dtype=torch.float64)
    tensors |= {f"final.{name}": p.detach() for name, p in adapter_parameters(tuned).items()}
    save_file({name: t.contiguous() for name, t in tensors.items()}, FOLDER / "goldens.safetensors")
    for file in FOLDER.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"loss {tensors['loss'].item():.6f}, with adapter {loss:.6f}, curve {tensors['train.loss'].tolist()}")


def save_random_model() -> None:
    model = LlamaForCausalLM(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)


def random_sequence(length: int, prompt: int) -> Sequence:
    ids = torch.randint(3, CONFIG.vocab_size, (length,)).tolist()
    return Sequence(ids, [IGNORE] * prompt + ids[prompt:])


def randomise_adapter(model) -> None:
    """PEFT starts with B = 0, which hides a wrong scale and gives A no gradient."""
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if ".lora_B." in name else 0.2))


def save_adapter(model, folder: Path, base: str) -> None:
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
