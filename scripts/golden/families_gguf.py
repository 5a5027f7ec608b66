#!/usr/bin/env python3
"""Make `daemon/engine/model/fixtures/gguf/NAME.gguf`, and of two NAME-q8_0.gguf, of the tiny models that families.py made, by llama.cpp's rules: its own
table of names, norms of Gemma stored as 1 + w. transformers reads each back, and must find the tensors it came from.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from families import ROOT, VOCABULARY
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, quants
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

FOLDER = ROOT.parent / "gguf"
ARCHITECTURES = {
    # As llama.cpp's converter does, with the window that it leaves out.
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "phi3_longrope": gguf.MODEL_ARCH.PHI3,
}
# Where a matrix of the network is not a tensor of the file as it is: whole blocks are cut out of one, or turned round.
QUANTISED = ["qwen3_moe", "gpt2"]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, architecture in ARCHITECTURES.items():
        config = AutoConfig.from_pretrained(ROOT / name)
        tensors = {key: value.float() for key, value in load_file(ROOT / name / "model.safetensors").items()}
        path = FOLDER / f"{name}.gguf"
        write(path, config, tensors, architecture)
        path.chmod(0o644)
        check(path, config, tensors)
        print(path.name, path.stat().st_size)
        if name in QUANTISED:
            path = FOLDER / f"{name}-q8_0.gguf"
            write(path, config, tensors, architecture, Type.Q8_0)
            path.chmod(0o644)


def write(
    path: Path, config, tensors: dict[str, torch.Tensor], architecture: gguf.MODEL_ARCH, of_matrices: Type = Type.BF16
) -> None:
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    rotary = config.model_type != "gpt2"
    writer.add_feed_forward_length(config.intermediate_size if rotary else config.n_inner)
    writer.add_head_count(config.num_attention_heads)
    if rotary:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(VOCABULARY)
    rope = config.rope_parameters if rotary else {}
    if rotary:
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if getattr(config, "sliding_window", None) and architecture != gguf.MODEL_ARCH.QWEN2:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        tensors = experts_together(tensors, config.num_experts)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "gemma3_text":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["full_attention"]["factor"])
    if "long_factor" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], dtype=np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], dtype=np.float32))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(VOCABULARY)])
    writer.add_token_merges(["t 1"])
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in tensors.items():
        if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if architecture == gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = halves_interleaved(tensor, config.head_dim)
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            # `[inputs, outputs]` in transformers' Conv1D.
            tensor = tensor.T.contiguous()
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor.ndim == 1:
            writer.add_tensor(stored, tensor.numpy())
        else:
            # A row is whole blocks.
            kind = of_matrices if tensor.shape[-1] % 32 == 0 and stored.startswith("blk.") else Type.BF16
            writer.add_tensor(stored, quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def experts_together(tensors: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """The matrices of all experts of a block in one tensor, as `Qwen2MoeModel` in llama.cpp's converter has them."""
    together = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name in tensors:
        if ".experts.0." in name:
            each = [tensors[name.replace(".experts.0.", f".experts.{index}.")] for index in range(count)]
            together[name.replace(".experts.0.", ".experts.")] = torch.stack(each)
    return together


def halves_interleaved(matrix: torch.Tensor, head_dim: int) -> torch.Tensor:
    """llama.cpp rotates neighbours (`LlamaModel.permute` in its converter)."""
    return matrix.reshape(-1, 2, head_dim // 2, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape)


def check(path: Path, config, tensors: dict[str, torch.Tensor]) -> None:
    # transformers reads a Mistral's file as a llama's, too.
    as_stored = LlamaConfig(**config.to_dict() | {"model_type": "llama"}) if config.model_type == "mistral" else config
    model = AutoModelForCausalLM.from_config(as_stored)
    if config.model_type == "qwen3_moe":
        # It reads experts together, as it holds them in memory, and takes their width for its own default.
        found = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32
        )
        expected = AutoModelForCausalLM.from_pretrained(ROOT / config.model_type, dtype=torch.float32)
        for name, tensor in expected.state_dict().items():
            assert torch.allclose(found.state_dict()[name], tensor, atol=1e-6), name
        return
    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    for name, tensor in tensors.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


if __name__ == "__main__":
    main()
