#!/usr/bin/env python3
"""Make `daemon/engine/model/fixtures/adapters`: LoRA and its kin as PEFT computes them, on the tiny models beside it.

    python adapters.py [NAME ...]

One folder a case, with `adapter/` as PEFT writes it and `goldens.safetensors`. README.md lists what is in the folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from llama import save_adapter
from lora_sft import LINEAR_LAYERS, IGNORE, Schedule, Sequence, adapter_parameters, gradients_of, logits_of, train
from peft import LoraConfig, get_peft_model
from peft.utils.loftq_utils import _low_rank_decomposition
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parents[2] / "daemon/engine/model/fixtures"
SCHEDULE = Schedule(steps=10, warmup_steps=2, learning_rate=1e-3)
CONV1D = ["c_attn", "c_proj", "c_fc"]
CASES = {
    "rslora": (
        "tiny-llama",
        {
            "use_rslora": True,
            "rank_pattern": {r"layers\.0\.self_attn\..*": 2, "down_proj": 6},
            "alpha_pattern": {r"layers\.2\.mlp\..*": 3, "q_proj": 16},
        },
    ),
    "dora": ("tiny-llama", {"use_dora": True}),
    # All norms, a table that is the output layer as well, and a layer of one block.
    "saved": (
        "tiny-llama",
        {
            "modules_to_save": ["model.embed_tokens", "norm", "model.layers.1.mlp.up_proj"],
            "ensure_weight_tying": True,
            "target_modules": ["q_proj", "down_proj"],
        },
    ),
    "saved_head": ("families/qwen2", {"modules_to_save": ["lm_head", "model.norm"], "target_modules": ["v_proj"]}),
    "saved_positions": (
        "families/gpt2",
        {"modules_to_save": ["transformer.wpe", "transformer.ln_f"], "target_modules": ["c_attn"]},
    ),
    "bias_norms": ("families/gpt2", {"bias": "all", "target_modules": ["c_fc"]}),
    "bias_all": ("families/llama_biased", {"bias": "all", "use_dora": True, "target_modules": ["q_proj", "up_proj"]}),
    "bias_lora_only": ("families/llama_biased", {"bias": "lora_only", "target_modules": ["o_proj", "gate_proj"]}),
    # The table and the output layer: two matrices; one that is both; a table whose rows are made larger, and logits that are
    # bounded; and names of another family.
    "tables": ("families/qwen2", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "tables_tied": (
        "tiny-llama",
        {"target_modules": ["embed_tokens", "lm_head"], "rank_pattern": {"lm_head": 2}, "use_rslora": True},
    ),
    "tables_gemma2": ("families/gemma2", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "tables_gpt2": ("families/gpt2", {"target_modules": ["wte", "c_attn"]}),
    "dora_gpt2": ("families/gpt2", {"use_dora": True, "use_rslora": True, "target_modules": CONV1D}),
}


def main() -> None:
    torch.set_num_threads(1)
    for name, (base, options) in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        record(name, FIXTURES / base, options)
    for name, (options, prepare) in STARTS.items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            record_start(name, options, prepare)


def record(name: str, base: Path, options: dict) -> None:
    torch.manual_seed(11)
    folder = FIXTURES / "adapters" / name
    shutil.rmtree(folder, ignore_errors=True)
    goldens = load_file(base / "goldens.safetensors")
    batch = [Sequence(goldens[f"ids.{i}"].tolist(), goldens[f"labels.{i}"].tolist()) for i in range(2)]
    assert all(IGNORE in sequence.labels for sequence in batch)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR_LAYERS, "task_type": "CAUSAL_LM"} | options
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tuned = get_peft_model(model, LoraConfig(**settings)).train()
    randomise(tuned)
    save_adapter(tuned, folder / "adapter", base.name)
    tensors = {f"adapter_logits.{i}": logits_of(tuned, sequence.ids) for i, sequence in enumerate(batch)}
    loss, gradients = gradients_of(tuned, batch)
    tensors["adapter_loss"] = torch.tensor(loss)
    tensors |= {f"grad.{key}": gradient for key, gradient in gradients.items()}
    curve = train(tuned, batch, SCHEDULE)
    tensors["train.loss"] = torch.tensor(curve["loss"], dtype=torch.float64)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "goldens.safetensors")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"{name}: loss {loss:.6f}, curve {curve['loss']}")


def record_start(name: str, options: dict, prepare) -> None:
    """A pair that starts as a part of its layer: `product.L` is what layer L's makes of it, `frozen.L` the rest, `values.L` their
    singular values."""
    torch.manual_seed(11)
    folder, base = FIXTURES / "adapters" / name, FIXTURES / "tiny-llama"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    goldens = load_file(base / "goldens.safetensors")
    batch = [Sequence(goldens[f"ids.{i}"].tolist(), goldens[f"labels.{i}"].tolist()) for i in range(2)]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    config = LoraConfig(r=4, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM", **options)
    tuned = get_peft_model(model, config).train()
    tensors = {}
    for key, module in tuned.base_model.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        prepare(module, config)
        if key.startswith("model.layers.1.") and key.endswith(("q_proj", "up_proj", "down_proj")):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            product = (module.scaling["default"] * b @ a).detach()
            tensors[f"product.{key}"] = product
            tensors[f"frozen.{key}"] = module.base_layer.weight.detach().clone()
            tensors[f"values.{key}"] = torch.linalg.svdvals(product)[:4]
    curve = train(tuned, batch, SCHEDULE)
    tensors["train.loss"] = torch.tensor(curve["loss"], dtype=torch.float64)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "goldens.safetensors")
    (folder / "goldens.safetensors").chmod(0o644)
    print(f"{name}: curve {curve['loss']}")


def loftq(iterations: int):
    """PEFT's `loftq_init`, which wants a GPU, on the processor; with PEFT's decomposition and bitsandbytes' 4 bits."""

    def start(module, config) -> None:
        weight = module.base_layer.weight.detach()
        rest = weight.clone()
        for _ in range(iterations):
            quantised, state = quantize_4bit(rest, compress_statistics=False, quant_type="nf4")
            dequantised = dequantize_4bit(quantised, state).float()
            pair = _low_rank_decomposition(weight - dequantised, reduced_rank=config.r)
            rest = weight - pair["L"] @ pair["R"]
        module.base_layer.weight.data = dequantised
        module.lora_A["default"].weight.data = pair["R"].contiguous()
        module.lora_B["default"].weight.data = pair["L"].contiguous()

    return start


def randomise(model) -> None:
    """Away from where PEFT starts, which hides a wrong scale, a wrong norm and a copy that is not used."""
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            noise = torch.randn_like(parameter)
            if any(part in name for part in (".lora_A", ".lora_B", ".lora_embedding_")):
                parameter.copy_(noise * (0.1 if ".lora_B" in name or "_embedding_B" in name else 0.2))
            else:
                parameter.add_(0.1 * noise * parameter.abs().mean())


STARTS = {
    "pissa": ({"lora_alpha": 8, "init_lora_weights": "pissa"}, lambda module, config: None),
    "loftq": ({"lora_alpha": 4}, loftq(1)),
    "loftq_3": ({"lora_alpha": 4}, loftq(3)),
}


if __name__ == "__main__":
    main()
