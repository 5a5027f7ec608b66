#!/usr/bin/env python3
"""Make `daemon/engine/model/fixtures/families/NAME`: a tiny random model of each family with its reference values.

    python families.py [NAME ...]

Weights are spread widely (standard deviation 0.2), so that a wrong head order, rotation, window or norm moves the logits.
They are stored as bfloat16 and computed with in float32. Sequences are longer than the windows. README.md lists what is
in the folders.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from llama import randomise_adapter, save_adapter
from lora_sft import (
    IGNORE, Schedule, Sequence, adapter_parameters, attach_lora, gradients_of, logits_of, loss_of, train,
)
from safetensors.torch import save_file
from transformers import (
    AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig,
    MistralConfig, OPTConfig, Phi3Config, Qwen2Config, Qwen3Config, Qwen3MoeConfig, T5Config,
)
from transformers.pytorch_utils import Conv1D

ROOT = Path(__file__).resolve().parents[2] / "daemon/engine/model/fixtures/families"
RANK, ALPHA = 2, 4
SCHEDULE = Schedule(steps=10, warmup_steps=2, learning_rate=1e-3)
VOCABULARY = 64
SIZES = dict(
    hidden_size=32,
    intermediate_size=40,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCABULARY,
    max_position_embeddings=64,
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
ROPE = {"rope_theta": 10000.0}


def llama(layers: int = 2, **rope) -> LlamaConfig:
    return LlamaConfig(**SIZES, num_hidden_layers=layers, rope_parameters=ROPE | rope, tie_word_embeddings=True)


CONFIGS = {
    "llama_linear": lambda: llama(rope_type="linear", factor=4.0),
    "llama_llama3": lambda: llama(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    "llama_yarn": lambda: llama(
        rope_type="yarn", factor=4.0, beta_fast=4.0, beta_slow=1.0, original_max_position_embeddings=16
    ),
    "llama_biased": lambda: LlamaConfig(
        **SIZES, num_hidden_layers=2, head_dim=6, rope_parameters=ROPE, attention_bias=True, mlp_bias=True
    ),
    "mistral": lambda: MistralConfig(
        **SIZES, num_hidden_layers=2, head_dim=12, sliding_window=5, rope_parameters=ROPE
    ),
    "qwen2": lambda: Qwen2Config(
        **SIZES, num_hidden_layers=2, use_sliding_window=True, sliding_window=5, max_window_layers=1, rope_parameters=ROPE
    ),
    "qwen3": lambda: Qwen3Config(
        **SIZES, num_hidden_layers=2, head_dim=10, rope_parameters=ROPE, tie_word_embeddings=True
    ),
    "gemma2": lambda: Gemma2Config(
        **SIZES, num_hidden_layers=3, head_dim=8, query_pre_attn_scalar=12, sliding_window=5, rope_parameters=ROPE,
        attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
    ),
    "gemma3_text": lambda: Gemma3TextConfig(
        **SIZES, num_hidden_layers=3, head_dim=8, query_pre_attn_scalar=12, sliding_window=5,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "phi3": lambda: Phi3Config(
        **SIZES, num_hidden_layers=2, sliding_window=6, rope_parameters=ROPE, resid_pdrop=0.0, embd_pdrop=0.0
    ),
}
CONFIGS |= {
    "gpt2": lambda: GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=64, vocab_size=VOCABULARY, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2,
    ),
    "opt": lambda: OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        vocab_size=VOCABULARY, word_embed_proj_dim=32, init_std=0.2, dropout=0.0, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    ),
}
# Positions count up to the length of the sequence, and these models turn differently beyond so many tokens.
CONFIGS |= {
    "llama_dynamic": lambda: LlamaConfig(
        **(SIZES | {"max_position_embeddings": 12}), num_hidden_layers=2, tie_word_embeddings=True,
        rope_parameters=ROPE | {"rope_type": "dynamic", "factor": 4.0},
    ),
    "phi3_longrope": lambda: Phi3Config(
        **SIZES, num_hidden_layers=2, original_max_position_embeddings=12, resid_pdrop=0.0, embd_pdrop=0.0,
        rope_parameters=ROPE | {
            "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 2.0, 5.0, 9.0],
        },
    ),
}
# Without a window all blocks have experts, as llama.cpp wants them; with one, the second and no other has.
CONFIGS |= {
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SIZES, num_hidden_layers=2, head_dim=10, rope_parameters=ROPE, num_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=8, norm_topk_prob=True,
    ),
    "qwen3_moe_mixed": lambda: Qwen3MoeConfig(
        **SIZES, num_hidden_layers=3, head_dim=6, rope_parameters=ROPE, num_experts=5, num_experts_per_tok=3,
        moe_intermediate_size=8, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[1], attention_bias=True,
        use_sliding_window=True, sliding_window=5, tie_word_embeddings=True,
    ),
}


def t5(**more) -> T5Config:
    """Heads that are together narrower than the hidden state, and few buckets."""
    return T5Config(
        d_model=24, d_kv=4, d_ff=20, num_decoder_layers=2, num_heads=4, vocab_size=VOCABULARY,
        relative_attention_num_buckets=8, relative_attention_max_distance=11, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **more,
    )


CONFIGS |= {
    "t5": lambda: t5(num_layers=3, feed_forward_proj="relu"),
    "t5_v1_1": lambda: t5(num_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CONFIGS:
        torch.manual_seed(7)
        make(name, ROOT / name)


def make(name: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if name.startswith("t5"):
        save_random_t5(CONFIGS[name](), folder)
        batch = [random_pair(source=17, target=9), random_pair(source=6, target=14)]
    else:
        save_random_model(CONFIGS[name](), folder)
        batch = [random_sequence(length=17, prompt=5), random_sequence(length=9, prompt=3)]
    model = without_dropout(load(folder))
    tensors = {}
    for index, sequence in enumerate(batch):
        tensors[f"ids.{index}"] = torch.tensor(sequence.ids)
        tensors[f"labels.{index}"] = torch.tensor(sequence.labels)
        tensors[f"logits.{index}"] = logits_of(model, sequence.ids, sequence.source)
        if sequence.source:
            tensors[f"source.{index}"] = torch.tensor(sequence.source)
    loss, gradients = gradients_of(model, batch)
    tensors["loss"] = torch.tensor(loss)
    gradients = expert_by_expert(outputs_first(model, gradients))
    tensors |= {f"grad.{name}": gradient for name, gradient in gradients.items()}

    tuned = attach_lora(model, RANK, ALPHA, linear_layers(model))
    randomise_adapter(tuned)
    save_adapter(tuned, folder / "adapter", name)
    for index, sequence in enumerate(batch):
        tensors[f"adapter_logits.{index}"] = logits_of(tuned, sequence.ids, sequence.source)
        if sequence.source:
            said = tuned.generate(input_ids=torch.tensor([sequence.source]), max_new_tokens=12, do_sample=False)
            tensors[f"generated.{index}"] = said[0, 1:]
    loss, gradients = gradients_of(tuned, batch)
    tensors["adapter_loss"] = torch.tensor(loss)
    tensors |= {f"grad.{name}": gradient for name, gradient in gradients.items()}
    curve = train(tuned, batch, SCHEDULE)
    tensors["train.loss"] = torch.tensor(curve["loss"], dtype=torch.float64)
    finish(folder, tensors)


def without_dropout(model):
    """In training mode."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def finish(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes the reference values beside the model, and says how large and how good it is."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "goldens.safetensors")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    loss, tuned, curve = tensors["loss"], tensors["adapter_loss"], tensors["train.loss"].tolist()
    print(f"{folder.name}: {size} bytes, loss {loss:.4f}, with adapter {tuned:.4f}, curve {curve}")


def load(folder: Path):
    auto = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def save_random_model(config, folder: Path, auto=AutoModelForCausalLM) -> None:
    """Norms, biases and single rows are spread, too."""
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.shape[0] == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def save_random_t5(config, folder: Path) -> None:
    """As published: two tables where they are not tied, which transformers no longer says by itself."""
    model = AutoModelForSeq2SeqLM.from_config(config)
    if not config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn_like(parameter) * (1.0 if "relative_attention_bias" in name else 0.2)
            parameter.copy_(spread + 1.0 if parameter.ndim == 1 else spread)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if not config.scale_decoder_outputs:
        written = json.loads((folder / "config.json").read_text())
        del written["scale_decoder_outputs"]
        written["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")


def random_pair(source: int, target: int) -> Sequence:
    """A target begins with the token that decoders start with; both end with that of the end."""
    source, target = (torch.randint(3, VOCABULARY, (length - 1,)).tolist() + [1] for length in (source, target))
    return Sequence([0, *target], [IGNORE, *target], source)


def random_sequence(length: int, prompt: int) -> Sequence:
    ids = torch.randint(3, VOCABULARY, (length,)).tolist()
    return Sequence(ids, [IGNORE] * prompt + ids[prompt:])


def linear_layers(model) -> list[str]:
    """Last names of the layers inside the blocks, as LoRA configurations give them; beside experts those of attention."""
    linear = (name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D)))
    if model.config.model_type == "qwen3_moe":
        linear = (name for name in linear if ".self_attn." in name)
    return sorted({name.rsplit(".", 1)[-1] for name in linear if name != "lm_head"})


def outputs_first(model, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of matrices as `[out, in]`, those of Conv1D as well."""
    conv = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return {name: gradient.T if name in conv else gradient for name, gradient in gradients.items()}


def expert_by_expert(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In memory the experts of a block lie in two tensors; in files each has its own three."""
    parted = {}
    for name, gradient in gradients.items():
        start, fused = name.rpartition(".")[::2]
        if not start.endswith(".experts"):
            parted[name] = gradient
            continue
        for index, of_expert in enumerate(gradient):
            parts = ["gate_proj", "up_proj"] if fused == "gate_up_proj" else [fused]
            for part, matrix in zip(parts, of_expert.chunk(len(parts))):
                parted[f"{start}.{index}.{part}.weight"] = matrix
    return parted


if __name__ == "__main__":
    main()
