#!/usr/bin/env python3
"""Make `daemon/engine/weights/fixtures`: random quantised blocks with what llama.cpp's `gguf` package decodes, and a
tiny llama both as GGUF (q and k rows interleaved as llama.cpp's converter does) and as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, quants
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).resolve().parents[2] / "daemon/engine/weights/fixtures"
# Where each block keeps its half-precision scales: random bytes there could be NaN.
SCALES = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.IQ4_NL: [0], Type.IQ4_XS: [0],
}  # fmt: skip
TYPES = [Type.F32, Type.F16, Type.BF16, *SCALES]
BLOCKS = 12


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    tensors = {}
    for kind in TYPES:
        block = random_blocks(kind, rng)
        tensors[f"{kind.name}.bytes"] = block.reshape(-1)
        tensors[f"{kind.name}.values"] = quants.dequantize(block, kind).astype(np.float32).reshape(-1)
    save_file(tensors, FOLDER / "gguf_blocks.safetensors")
    tiny_model()


def random_blocks(kind: Type, rng) -> np.ndarray:
    if kind in (Type.F32, Type.F16, Type.BF16):
        values = rng.standard_normal((BLOCKS, 32)).astype(np.float32)
        return quants.quantize(values, kind).view(np.uint8).reshape(BLOCKS, -1)
    _, size = quants.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for offset in SCALES[kind]:
        scale = (rng.standard_normal(BLOCKS) * 0.1).astype(np.float16)
        blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
    return blocks


def tiny_model() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4, vocab_size=20, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=True,
        initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(5)
    model = LlamaForCausalLM(config)
    model.save_pretrained(FOLDER / "tiny")
    (FOLDER / "tiny/generation_config.json").unlink(missing_ok=True)
    writer = GGUFWriter(FOLDER / "tiny.gguf", "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(4)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weight.numpy()
        for heads, part in [(4, "q_proj"), (2, "k_proj")]:
            if part in name:
                # llama.cpp, conversion/llama.py, LlamaModel.permute
                array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        module = name.removesuffix(".weight").replace("model.layers.0.", "")
        prefix = "blk.0." if "layers" in name else ""
        writer.add_tensor(f"{prefix}{names[module]}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
