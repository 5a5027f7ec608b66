#!/usr/bin/env python3
"""Do exported folders load in PEFT and transformers, without a warning and with the logits we computed?

    python check_export.py --base BASE --expected EXPECTED.json [--adapter FOLDER] [--merged FOLDER]

BASE is a GGUF file or a Hugging Face folder. EXPECTED.json is what the tuned model gave in float32:

    {"prompts": [{"ids": [1, 2, …], "logits": [0.1, …], "text": "…"}]}

with the logits of the last position over the whole vocabulary. `text` may be left out; where it is given, the merged
folder's tokenizer must turn it into exactly `ids`. Prints one JSON object; the exit status is 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

MAX_ERROR = 2e-3


class CheckFailed(Exception):
    pass


class RefuseWarnings(logging.Handler):
    """PEFT and transformers report some mismatches only through their loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        raise CheckFailed(f"{record.name} warned: {record.getMessage()}")


@contextmanager
def no_warnings():
    handler = RefuseWarnings(level=logging.WARNING)
    loggers = [logging.getLogger("peft"), logging.getLogger("transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Deprecations between the libraries themselves say nothing about our files.
            for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--expected", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--merged", type=Path)
    arguments = parser.parse_args()
    if not (arguments.adapter or arguments.merged):
        parser.error("nothing to check: give --adapter, --merged or both")
    transformers_logging.disable_progress_bar()
    prompts = json.loads(arguments.expected.read_text())["prompts"]
    try:
        report = {}
        if arguments.adapter:
            report["peft_max_error"] = check_adapter(arguments.base, arguments.adapter, prompts)
        if arguments.merged:
            report["merged_max_error"] = check_merged(arguments.merged, prompts)
    except (CheckFailed, Warning, ValueError, RuntimeError, OSError) as error:
        print(json.dumps({"ok": False, "error": str(error)}, ensure_ascii=False))
        sys.exit(1)
    print(json.dumps({"ok": True, **report}))


def check_adapter(base: Path, adapter: Path, prompts: list[dict]) -> float:
    location = {"pretrained_model_name_or_path": base}
    if base.is_file():
        location = {"pretrained_model_name_or_path": base.parent, "gguf_file": base.name}
    model = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
    with no_warnings():
        tuned = PeftModel.from_pretrained(model, adapter)
    return compare("adapter", tuned.eval(), prompts)


def check_merged(folder: Path, prompts: list[dict]) -> float:
    with no_warnings():
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise CheckFailed(f"merged folder has {kind}: {sorted(info[kind])}")
    if any("text" in prompt for prompt in prompts):
        with no_warnings():
            tokenizer = AutoTokenizer.from_pretrained(folder)
        for prompt in prompts:
            ids = tokenizer.encode(prompt["text"], add_special_tokens=False) if "text" in prompt else prompt["ids"]
            if ids != prompt["ids"]:
                raise CheckFailed(f"the merged folder's tokenizer reads {prompt['text']!r} as {ids}, not {prompt['ids']}")
    return compare("merged model", model.eval(), prompts)


def compare(what: str, model, prompts: list[dict]) -> float:
    worst = 0.0
    for prompt in prompts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt["ids"]])).logits[0, -1]
        expected = torch.tensor(prompt["logits"])
        if logits.shape != expected.shape:
            raise CheckFailed(f"{what} has {logits.numel()} logits, not {expected.numel()}")
        worst = max(worst, (logits - expected).abs().max().item())
    if not worst <= MAX_ERROR:
        raise CheckFailed(f"{what}: logits differ by {worst:.2e}, at most {MAX_ERROR:.0e} is allowed")
    return worst


if __name__ == "__main__":
    main()
