"""SmolLM2 from a GGUF file, as transformers objects in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def load_model(file: str, attention: str = "eager") -> PreTrainedModel:
    path = Path(file)
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation=attention
    ).eval()


def load_tokenizer(file: str):
    """transformers ignores `tokenizer.ggml.pre`. `smollm` means: each digit alone, then GPT-2's splitting."""
    path = Path(file)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
