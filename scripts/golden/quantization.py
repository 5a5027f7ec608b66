#!/usr/bin/env python3
"""Make `daemon/engine/kernels/fixtures/quantization.safetensors`: matrices as bitsandbytes quantises them, on the CPU.

For each case: `weights`; NF4 in blocks of 64 (`nf4.codes`, `nf4.scales`, `nf4.values`), the same with double
quantisation (`double.codes` of the scales, `double.scales`, `double.offset`, `double.values`), and rows of int8
(`int8.codes`, `int8.scales`, `int8.values`). Also both dynamic maps, and vectors quantised with them block-wise.

And `daemon/engine/model/fixtures/tiny-q8_0.gguf`: a llama of one layer whose matrices are random blocks of Q8_0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from bitsandbytes import functional as bnb
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import save_file

ENGINE = Path(__file__).resolve().parents[2] / "daemon/engine"
FILE = ENGINE / "kernels/fixtures/quantization.safetensors"
GGUF = ENGINE / "model/fixtures/tiny-q8_0.gguf"


def main() -> None:
    torch.manual_seed(11)
    tensors = {}
    for name, weights in matrices().items():
        values = {"weights": weights} | nf4(weights) | int8(weights)
        tensors |= {f"{name}.{part}": value.contiguous() for part, value in values.items()}
    for name, signed in [("signed", True), ("unsigned", False)]:
        code = bnb.create_dynamic_map(signed=signed).float()
        tensors[f"map.{name}"] = code
        for length in (1, 255, 256, 700):
            vector = torch.randn(length) * 0.03
            vector = vector if signed else vector.abs()
            vector[: length // 3] *= 1e-4
            codes, scales = quantize_blockwise(vector, code)
            values = bnb.dequantize_blockwise(codes, absmax=scales, code=code, blocksize=256)
            parts = {"vector": vector, "codes": codes, "scales": scales, "values": values}
            tensors |= {f"map.{name}.{length}.{part}": value for part, value in parts.items()}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, FILE)
    tiny_gguf()


def matrices() -> dict[str, torch.Tensor]:
    zeros = torch.randn(4, 64) * 0.02
    zeros[1] = 0
    zeros[3, 5:] = 0
    # Halfway between two codes, and on them.
    code = bnb.get_4bit_type("nf4", device="cpu")
    middles = torch.cat([code, (code[:-1] + code[1:]) / 2, torch.zeros(33)]).reshape(1, 64)
    return {
        "whole": torch.randn(40, 128) * 0.02,
        "many": torch.randn(260, 64) * torch.rand(260, 1) * 0.05,
        "odd": torch.randn(7, 33) * 0.02,
        "one": torch.tensor([[-0.3]]),
        "zeros": zeros,
        "zero_rest": torch.cat([torch.randn(64), torch.zeros(5)]).reshape(1, 69),
        "middles": middles,
    }


def quantize_blockwise(vector: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By bitsandbytes' definition. Its native CPU build looks codes up in a table that is coarse near 0."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    return torch.ops.bitsandbytes.quantize_blockwise.default.redispatch(keys, vector, code, 256)


def nf4(weights: torch.Tensor) -> dict[str, torch.Tensor]:
    codes, state = bnb.quantize_4bit(weights, blocksize=64, quant_type="nf4")
    scales, offset = state.absmax, state.absmax.mean()
    nested = bnb.create_dynamic_map(signed=True).float()
    nested_codes, nested_scales = quantize_blockwise(scales - offset, nested)
    state2 = bnb.QuantState(nested_scales, blocksize=256, code=nested, dtype=torch.float32)
    double = bnb.QuantState(
        nested_codes, weights.shape, state.code, 64, "nf4", torch.float32, offset=offset, state2=state2
    )  # fmt: skip
    return {
        "nf4.codes": codes.reshape(-1),
        "nf4.scales": scales,
        "nf4.values": bnb.dequantize_4bit(codes, state),
        "double.codes": nested_codes,
        "double.scales": nested_scales,
        "double.offset": offset.reshape(1),
        "double.values": bnb.dequantize_4bit(codes, double),
    }


def int8(weights: torch.Tensor) -> dict[str, torch.Tensor]:
    codes, scales, _ = bnb.int8_vectorwise_quant(weights.clone())
    return {"int8.codes": codes, "int8.scales": scales, "int8.values": bnb.int8_vectorwise_dequant(codes, scales)}


def tiny_gguf() -> None:
    writer = GGUFWriter(GGUF, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    rng = np.random.default_rng(12)
    matrices = {
        "token_embd": (20, 64), "blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64), "blk.0.attn_v": (32, 64),
        "blk.0.attn_output": (64, 64), "blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96),
    }  # fmt: skip
    for name, shape in matrices.items():
        weight = (rng.standard_normal(shape) * 0.2).astype(np.float32)
        blocks = quants.quantize(weight, GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
