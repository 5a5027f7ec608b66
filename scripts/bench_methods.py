#!/usr/bin/env python3
"""What the ways of holding weights and optimiser states cost and save, measured on the worker.

    scripts/bench_methods.py qlora --model SmolLM2.gguf [--steps 60]    QLoRA and other precisions beside 16-bit LoRA
    scripts/bench_methods.py manual --model SmolLM2.gguf [--steps 120]  the same on text
    scripts/bench_methods.py full --model SmolLM2.gguf [--steps 100]    full fine-tuning beside float32 AdamW
    scripts/bench_methods.py memory --shape llama-1b [--steps 2]        QLoRA's peak on a random model of that shape

The first trains on number comparisons, the next two on passages of Python's manual. They print validation loss, speed, peak
memory and, for full fine-tuning, how far the loss curve is from that of float32 AdamW: the largest difference of the means of
ten steps, and that of the mean of all.

Random models are written once, as sharded bfloat16 safetensors, to --work (target/bench by default): 2.5 GB for llama-1b
and 15 GB for qwen-7b. --recipe 'key: value' adds lines to the recipe. Needs Python 3.11 with numpy, and a built worker.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import random
import re
import subprocess
import tempfile
from pathlib import Path
from statistics import mean, median

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARD_BYTES = 2 << 30
CONFIGS = {
    "llama-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "qwen-7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*FORMS, "memory"])
    parser.add_argument("--model", type=Path, help="the model to tune")
    parser.add_argument("--shape", choices=list(CONFIGS), help="memory: the random model's shape")
    parser.add_argument("--steps", type=int, default=60, help="more than 10 for a loss curve")
    parser.add_argument("--length", type=int, default=512, help="memory: tokens of the one row")
    parser.add_argument("--recipe", action="append", default=[], help="a line for the recipe")
    parser.add_argument("--worker", type=Path, default=ROOT / "target/release/justtrain-worker")
    parser.add_argument("--work", type=Path, default=ROOT / "target/bench")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "memory":
        measure_memory(options)
    else:
        compare(options, FORMS[options.what])


QLORA = [
    "precision: bf16",
    "quantization_bit: 4",
    "quantization_bit: 4\nloftq_init: true",
    "quantization_bit: 8",
    "precision: fp16",
    "precision: fp32",
]
FORMS = {
    "qlora": QLORA,
    "manual": QLORA,
    # Each beside the last one before it that is float32 AdamW: what is not clipped takes another way.
    "full": [
        "optim: adamw",
        "optim: adamw_8bit",
        "optim: adamw\nprecision: bf16\ngradient_checkpointing: true",
        "optim: adamw_8bit\nprecision: bf16\ngradient_checkpointing: true",
        "optim: adamw\nprecision: fp16",
        "optim: adafactor",
        "optim: adamw\nmax_grad_norm: 0",
        "optim: adamw_8bit\nmax_grad_norm: 0\nprecision: bf16\ngradient_checkpointing: true",
    ],
}


def compare(options: argparse.Namespace, forms: list[str]) -> None:
    """The quickstart's job in each form, or one with other data."""
    if options.what == "qlora":
        generate = {"kind": "numbers", "count": 1000, "seed": 7, "language": "en", "output": str(options.work / "numbers.json")}
        run_worker(options.worker, {"command": "data_generate"} | generate)
        recipe = (ROOT / "bundle/recipes/quickstart.yaml").read_text()
    else:
        write_manual(options.work / "manual.jsonl")
        recipe = MANUAL
    recipe = re.sub("^max_steps: .*", f"max_steps: {options.steps}", recipe, flags=re.MULTILINE)
    if options.what == "full":
        recipe = recipe.replace("lora_rank: 16\n", "").replace("lora_alpha: 32\n", "finetuning_type: full\n")
        recipe = recipe.replace("learning_rate: 5e-4", "learning_rate: 5e-5")
    reference = []
    for form in forms:
        lines = [form, f"eval_steps: {options.steps}", *options.recipe]
        figures, losses = train(options, options.model, recipe + "\n".join(lines) + "\n")
        if form.removesuffix("\nmax_grad_norm: 0") == "optim: adamw":
            reference = losses
        if options.what == "full":
            figures["curve_off_by"] = round(distance(tens(losses), tens(reference)), 4)
            figures["mean_off_by"] = round(distance([mean(losses)], [mean(reference)]), 4)
        print(json.dumps({"form": form.replace("\n", ", ")} | figures), flush=True)


MANUAL = """\
model_name_or_path: model
dataset: manual.jsonl
val_size: 100
cutoff_len: 256
lora_rank: 16
lora_alpha: 32
learning_rate: 5e-4
max_steps: 120
per_device_train_batch_size: 8
gradient_accumulation_steps: 1
seed: 7
"""


def write_manual(path: Path) -> None:
    """Passages of Python's own manual: the first sentence asks for the rest."""
    rows = []
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        for passage in re.split(r"\n\s*\n", text):
            passage = re.sub(r"\s+", " ", passage).strip()
            first, *rest = re.split(r"(?<=[.:])\s+", passage)
            if rest and 120 < len(passage) < 600:
                rows.append({"prompt": f"Python's manual on {topic}: {first}", "completion": " ".join(rest)})
    random.Random(7).shuffle(rows)
    # Some passages are in several topics.
    seen = set()
    rows = [row for row in rows if not (row["completion"] in seen or seen.add(row["completion"]))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tens(losses: list[float]) -> list[float]:
    return [mean(losses[start : start + 10]) for start in range(0, len(losses), 10)]


def distance(losses: list[float], others: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(losses, others, strict=True))


def measure_memory(options: argparse.Namespace) -> None:
    model = options.work / options.shape
    if not (model / "model.safetensors.index.json").exists():
        write_random_model(model, CONFIGS[options.shape])
    # The tokenizer has a token for every character; the template adds three.
    (options.work / "row.jsonl").write_text(json.dumps({"prompt": "x" * 100, "completion": "y" * (options.length - 104)}))
    recipe = (
        f"model_name_or_path: random\ndataset: row.jsonl\nval_size: 0\ncutoff_len: {options.length}\nlora_rank: 16\n"
        f"quantization_bit: 4\nmax_steps: {options.steps}\ngradient_accumulation_steps: 1\n"
    )
    figures, _ = train(options, model, recipe + "\n".join(options.recipe) + "\n")
    print(json.dumps({"shape": options.shape} | figures))


def train(options: argparse.Namespace, model: Path, recipe: str) -> tuple[dict, list[float]]:
    """Figures of a run, and the loss of each step."""
    source = {"text": recipe, "file": "recipe.yaml", "base_dir": str(options.work)}
    with tempfile.TemporaryDirectory(dir=options.work) as run_dir:
        files = {"name": "model", "path": str(model.resolve())}
        command = {"command": "train", "recipe": source, "model": files, "run_dir": run_dir, "resume": False}
        events, outcome = run_worker(options.worker, command)
    steps = [event for event in events if event["event"] == "step"]
    figures = {
        "tokens_per_step": steps[-1]["tokens"],
        # Of the median step; the first pays for memory that is touched for the first time.
        "tokens_per_second": round(1 / median(event["seconds"] / event["tokens"] for event in timed(steps)), 1),
        "first_loss": round(steps[0]["loss"], 4),
        "validation_loss": outcome.get("validation_loss"),
        "last_loss": round(steps[-1]["loss"], 4),
        "peak_memory_gib": round(outcome["peak_memory_bytes"] / 2**30, 3),
    }
    return figures, [event["loss"] for event in steps]


def timed(steps: list[dict]) -> list[dict]:
    return [event | {"seconds": event["tokens"] / event["tokens_per_second"]} for event in (steps[1:] or steps)]


def run_worker(program: Path, command: dict) -> tuple[list[dict], dict]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([program], **pipes, text=True) as process:
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        # The pipe stays open to the end: the worker takes a closed one for a stop.
        messages = [json.loads(line) for line in process.stdout]
    outcome = messages[-1].get("outcome") if messages else None
    if not outcome or outcome.get("outcome") == "failed":
        raise SystemExit(f"the worker failed: {json.dumps(messages[-2:], ensure_ascii=False)}")
    return [message["event"] for message in messages if "event" in message], outcome


def write_random_model(folder: Path, shape: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(config | shape))
    write_tokenizer(folder)
    # 64 MiB of normal numbers, upper halves of their float32s; every tensor is cut out of them at another place.
    normal = np.random.default_rng(1).standard_normal(32 << 20, dtype=np.float32) * 0.02
    pool = (normal.view(np.uint32) >> 16).astype(np.uint16)
    shards, names = [[]], {}
    for name, dims in tensors(shape):
        if sum(2 * int(np.prod(d)) for _, d in shards[-1]) > SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, dims))
    for index, shard in enumerate(shards, start=1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        names |= {name: file for name, _ in shard}
        write_shard(folder / file, shard, pool)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def tensors(shape: dict):
    hidden, wide, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    query, pair = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", [shape["vocab_size"], hidden]
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", [hidden]
        yield f"{prefix}.post_attention_layernorm.weight", [hidden]
        for name, dims in {
            "self_attn.q_proj": [query, hidden], "self_attn.k_proj": [pair, hidden], "self_attn.v_proj": [pair, hidden],
            "self_attn.o_proj": [hidden, query],
        }.items():  # fmt: skip
            yield f"{prefix}.{name}.weight", dims
        networks = {"mlp": wide}
        if experts := shape.get("num_experts"):
            networks = {f"mlp.experts.{index}": shape["moe_intermediate_size"] for index in range(experts)}
            yield f"{prefix}.mlp.gate.weight", [experts, hidden]
            yield f"{prefix}.self_attn.q_norm.weight", [head]
            yield f"{prefix}.self_attn.k_norm.weight", [head]
        for network, width in networks.items():
            yield f"{prefix}.{network}.gate_proj.weight", [width, hidden]
            yield f"{prefix}.{network}.up_proj.weight", [width, hidden]
            yield f"{prefix}.{network}.down_proj.weight", [hidden, width]
    yield "model.norm.weight", [hidden]
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", [shape["vocab_size"], hidden]


def write_shard(file: Path, shard: list, pool: np.ndarray) -> None:
    header, offset = {}, 0
    for name, dims in shard:
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        for index, (_, dims) in enumerate(shard):
            left = int(np.prod(dims))
            if len(dims) == 1:
                output.write(np.full(left, 0x3F80, dtype=np.uint16).tobytes())
                continue
            start = index * 1_000_003 % len(pool)
            while left > 0:
                part = pool[start : start + left]
                output.write(part)
                left, start = left - len(part), 0


def write_tokenizer(folder: Path) -> None:
    vocab = {f"<{i}>": i for i in range(3)} | {chr(code): code - 29 for code in range(32, 127)}
    special = {"id": 2, "content": "<2>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [special | {"normalized": False}],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"}, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<0>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = "{% for m in messages %}{{ m.role[0] + m.content + '<2>' }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<2>", "chat_template": template}))


if __name__ == "__main__":
    main()
