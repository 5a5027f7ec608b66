#!/usr/bin/env python3
"""What is forgotten when a model learns three small tasks one after the other, and what each method saves of it.

    scripts/bench_forgetting.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--steps 40] [--json]

The tasks: which of two numbers is larger; to which topic of Python's own manual a sentence belongs; the last letters of that
manual's words. Each method trains the same stages from the same seed and ends with the run's forgetting report: token accuracy on
the held-out rows of every task after every stage. Needs Python 3.11 and a built worker.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPICS = ["class", "import", "formatstrings", "numeric-types"]
FULL = {"finetuning_type": "full", "learning_rate": 5e-5}
METHODS = {
    "one after the other": {},
    "replay, a fifth of the batches": {"replay_ratio": 0.2},
    "EWC, λ 1000": {"ewc_lambda": 1000},
    "EWC, λ 100000": {"ewc_lambda": 100000},
    "replay and EWC, λ 1000": {"replay_ratio": 0.2, "ewc_lambda": 1000},
    "LwF, λ 1": {"lwf_lambda": 1},
    "LwF, λ 4": {"lwf_lambda": 4},
    "O-LoRA, λ 0": {"olora_lambda": 0},
    "O-LoRA, λ 0.01": {"olora_lambda": 0.01},
    "O-LoRA, λ 0.5": {"olora_lambda": 0.5},
    "replay and O-LoRA, λ 0.5": {"replay_ratio": 0.2, "olora_lambda": 0.5},
    "all weights, one after the other": FULL,
    "all weights, L2-SP, α 0.1": FULL | {"l2sp_alpha": 0.1},
    "all weights, L2-SP, α 1": FULL | {"l2sp_alpha": 1},
    "all weights, LwF, λ 1": FULL | {"lwf_lambda": 1},
}
SEED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40, help="of each stage")
    parser.add_argument("--worker", type=Path, default=ROOT / "target/release/justtrain-worker")
    parser.add_argument("--only", action="append", choices=METHODS, help="a method by its name; may be given several times")
    parser.add_argument("--json", action="store_true", help="print one JSON object a method")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(options, Path(folder))
        for name, keys in METHODS.items():
            if not options.only or name in options.only:
                show(name, train(options, Path(folder), keys), options.json)


def write_tasks(options: argparse.Namespace, folder: Path) -> None:
    numbers = {"command": "data_generate", "kind": "numbers", "count": 400, "seed": SEED, "language": "en"}
    run(options.worker, numbers | {"output": str(folder / "numbers.json")})
    chance = random.Random(SEED)
    rows = []
    for topic in TOPICS:
        text = pydoc_data.topics.topics[topic]
        for sentence in re.split(r"(?<=\.)\s+", re.sub(r"\s+", " ", text)):
            if 40 < len(sentence) < 200:
                rows.append({"prompt": f"Which topic is this about? {sentence}", "completion": topic})
    write(folder / "topics.jsonl", chance.sample(rows, min(len(rows), 160)))
    manual = " ".join(pydoc_data.topics.topics.values())
    words = sorted({word.lower() for word in re.findall(r"\b[A-Za-z]{4,10}\b", manual)})
    rows = [{"prompt": f"Last two letters of {word}?", "completion": f"{word[-2]} {word[-1]}"} for word in chance.sample(words, 400)]
    write(folder / "letters.jsonl", rows)


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(options: argparse.Namespace, folder: Path, keys: dict) -> dict:
    common = {
        "model_name_or_path": "model", "lora_rank": 16, "learning_rate": 0.0005, "val_size": 40, "max_steps": options.steps,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "cutoff_len": 256, "seed": SEED, "forgetting_report": True, "fisher_samples": 64,
    }  # fmt: skip
    recipe = [f"{key}: {json.dumps(value)}" for key, value in (common | keys).items()] + ["stages:"]
    for task, file in [("numbers", "numbers.json"), ("topics", "topics.jsonl"), ("letters", "letters.jsonl")]:
        recipe += [f"- name: {task}", f"  dataset: {file}"]
    with tempfile.TemporaryDirectory() as run_dir:
        source = {"text": "\n".join(recipe) + "\n", "file": "recipe.yaml", "base_dir": str(folder)}
        model = {"name": "model", "path": str(options.model.resolve())}
        run(options.worker, {"command": "train", "recipe": source, "model": model, "run_dir": run_dir, "resume": False})
        return json.loads((Path(run_dir) / "forgetting.json").read_text())


def run(worker: Path, command: dict) -> None:
    with subprocess.Popen([worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        # The pipe stays open to the end: the worker takes a closed one for a stop.
        last = [json.loads(line) for line in process.stdout][-1]
    if "outcome" not in last:
        sys.exit(f"{command['command']} failed: {json.dumps(last)}")


def show(name: str, report: dict, as_json: bool) -> None:
    if as_json:
        return print(json.dumps({"method": name, **report}), flush=True)
    percent = lambda share: f"{100 * share:.1f}"  # noqa: E731
    learnt = [report["matrix"][i][i] for i in range(len(report["stages"]))]
    cells = [*map(percent, learnt), *map(percent, report["matrix"][-1]), percent(report["average_accuracy"])]
    print(f"| {name} | {' | '.join(cells)} | {100 * report['backward_transfer']:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
