#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/early_stopping.json`: sequences of a metric, the validation at which transformers'
EarlyStoppingCallback ends the run, and the best one until then as its Trainer determines it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

from transformers import EarlyStoppingCallback, Trainer, TrainerControl, TrainerState

OUTPUT = Path(__file__).resolve().parents[2] / "daemon/engine/train/fixtures/early_stopping.json"


def play(values: list[float], greater_is_better: bool, patience: int, threshold: float) -> tuple[int | None, int]:
    args = SimpleNamespace(
        metric_for_best_model="eval_metric", greater_is_better=greater_is_better, save_strategy="steps", eval_strategy="steps",
        load_best_model_at_end=True,
    )
    callback, state, control = EarlyStoppingCallback(patience, threshold), TrainerState(), TrainerControl()
    trainer = SimpleNamespace(args=args, state=state)
    for step, value in enumerate(values, 1):
        state.global_step = step
        metrics = {"eval_metric": value}
        callback.on_evaluate(args, state, control, metrics)
        Trainer._determine_best_metric(trainer, metrics, None)
        if control.should_training_stop:
            return step, state.best_global_step
    return None, state.best_global_step


def main() -> None:
    random.seed(5)
    cases = []
    for number in range(24):
        greater = number % 2 == 1
        level, values = 0.5, []
        for _ in range(30):
            level += random.gauss(0.01 if greater else -0.01, 0.04)
            values.append(round(level, 3))
        patience, threshold = random.choice([1, 2, 3, 5, 12]), random.choice([0.0, 0.0, 0.02])
        end, best = play(values, greater, patience, threshold)
        case = {"greater_is_better": greater, "patience": patience, "threshold": threshold, "values": values}
        cases.append(case | {"end": end, "best": best})
    OUTPUT.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    print(sum(case["end"] is None for case in cases), "of", len(cases), "go through")


if __name__ == "__main__":
    main()
