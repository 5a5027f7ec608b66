#!/usr/bin/env python3
"""Do exported folders load in PEFT and transformers, without a warning and with the logits we computed?

    python check_export.py --base BASE [--adapter FOLDER] [--merged FOLDER] [--expected EXPECTED.json] [--answers ANSWERS.jsonl]

BASE is a GGUF file or a Hugging Face folder. EXPECTED.json is what the tuned model gave in float32:

    {"prompts": [{"ids": [1, 2, …], "source": [], "logits": [0.1, …]}]}

with the logits of the last position over the whole vocabulary; `source` is what an encoder reads, where there is one. ANSWERS.jsonl is what `justtrain generate` wrote with the
tuned model: through the exported folder's own tokenizer, and chat template where it has no encoder, each prompt must get the same
greedy answer.
Prints one JSON object; the exit status is 1 when a check fails.
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

MAX_ERROR = 2e-3


class CheckFailed(Exception):
    pass


class RefuseWarnings(logging.Handler):
    """PEFT and transformers report some mismatches only through their loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        # transformers 5 says this of every T5 with two tables, the published ones as well.
        if "but both are present in the checkpoints with different values" in record.getMessage():
            return
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
            # What PEFT says of every pair on a table that is both ends; the merged folder is checked beside it.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--merged", type=Path)
    parser.add_argument("--expected", type=Path)
    parser.add_argument("--answers", type=Path)
    arguments = parser.parse_args()
    if not (arguments.adapter or arguments.merged):
        parser.error("nothing to check: give --adapter, --merged or both")
    if not (arguments.expected or arguments.answers):
        parser.error("nothing to compare with: give --expected, --answers or both")
    transformers_logging.disable_progress_bar()
    prompts = json.loads(arguments.expected.read_text())["prompts"] if arguments.expected else []
    answers = [json.loads(line) for line in arguments.answers.read_text().splitlines()] if arguments.answers else []
    report = {}
    try:
        for name, folder in [("peft", arguments.adapter), ("merged", arguments.merged)]:
            if folder is None:
                continue
            model = load_adapter(arguments.base, folder) if name == "peft" else load_merged(folder)
            report[name] = {"max_error": compare_logits(name, model, prompts)} if prompts else {}
            if answers:
                report[name]["answers"] = compare_answers(name, model, folder, answers)
    except (CheckFailed, Warning, ValueError, RuntimeError, OSError) as error:
        print(json.dumps({"ok": False, "error": str(error)}, ensure_ascii=False))
        sys.exit(1)
    print(json.dumps({"ok": True, **report}))


def auto(folder: Path):
    has_encoder = folder.is_dir() and AutoConfig.from_pretrained(folder).is_encoder_decoder
    return AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM


def load_adapter(base: Path, adapter: Path):
    location = {"pretrained_model_name_or_path": base}
    if base.is_file():
        location = {"pretrained_model_name_or_path": base.parent, "gguf_file": base.name}
    model = auto(base).from_pretrained(**location, dtype=torch.float32)
    with no_warnings():
        return PeftModel.from_pretrained(model, adapter).eval()


def load_merged(folder: Path):
    with no_warnings():
        model, info = auto(folder).from_pretrained(folder, dtype="auto", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise CheckFailed(f"merged folder has {kind}: {sorted(info[kind])}")
    return model.eval()


def compare_answers(what: str, model, folder: Path, answers: list[dict]) -> int:
    with no_warnings():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in answers:
        if model.config.is_encoder_decoder:
            inputs, before = tokenizer(row["prompt"], return_tensors="pt"), 1
        else:
            turns = [{"role": "user", "content": row["prompt"]}]
            inputs = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            before = inputs["input_ids"].shape[1]
        with torch.no_grad():
            # One more where the model said that it is done: it must say so here.
            tokens = row["answer_tokens"] + (row["end"] == "stop")
            generated = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        answer = tokenizer.decode(generated[0, before:], skip_special_tokens=True)
        if answer != row["answer"]:
            raise CheckFailed(f"{what} answers {row['prompt']!r} with {answer!r}, not {row['answer']!r}")
    return len(answers)


def compare_logits(what: str, model, prompts: list[dict]) -> float:
    worst = 0.0
    for prompt in prompts:
        inputs = {"input_ids": prompt["ids"]}
        if prompt.get("source"):
            inputs = {"input_ids": prompt["source"], "decoder_input_ids": prompt["ids"]}
        with torch.no_grad():
            logits = model(**{name: torch.tensor([ids]) for name, ids in inputs.items()}).logits[0, -1]
        expected = torch.tensor(prompt["logits"])
        if logits.shape != expected.shape:
            raise CheckFailed(f"{what} has {logits.numel()} logits, not {expected.numel()}")
        worst = max(worst, (logits - expected).abs().max().item())
    if not worst <= MAX_ERROR:
        raise CheckFailed(f"{what}: logits differ by {worst:.2e}, at most {MAX_ERROR:.0e} is allowed")
    return worst


if __name__ == "__main__":
    main()
