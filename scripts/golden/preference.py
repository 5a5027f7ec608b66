#!/usr/bin/env python3
"""Make `daemon/engine/train/fixtures/preference.safetensors`: 20 steps of each method of preference tuning by TRL, on the
tiny llama that llama.py makes and with the adapter that it starts from. README.md lists what is in the file.

TRL's trainers are run whole: they pair, mask, score and step. Where TRL has another definition than the paper, or has
dropped a method, the loss is written out here and says so.
"""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
from datasets import Dataset
from llama import CONFIG, FOLDER
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.utils import use_adapter

OUTPUT = FOLDER.parents[2] / "train/fixtures/preference.safetensors"
STEPS, BETA = 20, 0.3
ROWS = 6


def tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token: `7` is the id 7. Special tokens are found inside of words, too, so they are no numbers."""
    special = {"<pad>": 0, "</s>": CONFIG.eos_token_id}
    vocabulary = special | {str(i): i for i in range(CONFIG.vocab_size) if i not in special.values()}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>", bos_token=None)


def text(length: int) -> str:
    return " ".join(str(i) for i in torch.randint(3, CONFIG.vocab_size, (length,)).tolist())


def policy():
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(model, FOLDER / "adapter", is_trainable=True)


def reward_model():
    """The adapter with a head, as PEFT saves `modules_to_save: [score]`."""
    score = torch.randn(1, CONFIG.hidden_size, generator=torch.Generator().manual_seed(5)) * 0.02
    model = AutoModelForSequenceClassification.from_pretrained(
        FOLDER, num_labels=1, dtype=torch.float32, attn_implementation="eager", pad_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder:
        config = LoraConfig.from_pretrained(FOLDER / "adapter")
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        config.save_pretrained(folder)
        tensors = load_file(FOLDER / "adapter/adapter_model.safetensors")
        save_file(tensors | {"base_model.model.score.weight": score}, f"{folder}/adapter_model.safetensors")
        return PeftModel.from_pretrained(model, folder, is_trainable=True), score


def arguments(folder: str) -> dict:
    """Every row in each step, so that the order of rows has no bearing."""
    return {
        "output_dir": folder, "per_device_train_batch_size": ROWS, "max_steps": STEPS, "learning_rate": 2e-4,
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "weight_decay": 0.0, "optim": "adamw_torch",
        "report_to": "none", "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "max_length": 64, "remove_unused_columns": False,
        "disable_tqdm": True,
    }  # fmt: skip


def run(trainer_class, config_class, data: list[dict], model=None, **settings) -> tuple[list[float], object]:
    losses = []

    class Recording(trainer_class):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    with tempfile.TemporaryDirectory() as folder:
        beta = {} if config_class is RewardConfig else {"beta": BETA}
        config = config_class(**(arguments(folder) | beta | settings))
        trainer = Recording(
            model or policy(), args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer()
        )
        trainer.train()
    assert len(losses) == STEPS, len(losses)
    return losses, trainer


class PaperOrpo(ORPOTrainer):
    """TRL's negative log-likelihood is of prompt and answer, over the tokens of the batch; the paper's (equation 2) is
    of the answer alone, over its own tokens."""

    def concatenated_forward(self, model, batch):
        chosen, rejected, *logits, _ = super().concatenated_forward(model, batch)
        return chosen, rejected, *logits, -chosen.mean()


class Written(DPOTrainer):
    """Losses that are written out here, of TRL's own batches."""

    def _compute_loss(self, model, inputs, return_outputs):
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)

        def log_probabilities():
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
            losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
            return -losses.sum(1)

        # A copy of the adapter as it was given.
        with torch.no_grad(), use_adapter(model, "ref"):
            reference = log_probabilities()
        policy = log_probabilities()
        chosen_ratios, rejected_ratios = (policy - reference).chunk(2)
        chosen_means, _ = (policy / (labels[:, 1:] != -100).sum(1)).chunk(2)
        return self.written(chosen_ratios, rejected_ratios, chosen_means)


class KtoPair(Written):
    """TRL's `kto_pair` up to 0.8.6 (trainer/dpo_trainer.py), its KL terms detached as in the paper (section 4.1)."""

    def written(self, chosen, rejected, _means):
        chosen_kl, rejected_kl = (kind.detach().mean().clamp(min=0) for kind in (chosen, rejected))
        losses = [1 - F.sigmoid(BETA * (chosen - rejected_kl)), 1 - F.sigmoid(BETA * (chosen_kl - rejected))]
        return torch.cat(losses).mean()


class Smoothed(Written):
    """`label_smoothing` of `sigmoid`, which TRL has dropped (cDPO; 0.8.6, trainer/dpo_trainer.py)."""

    def written(self, chosen, rejected, _means):
        logits = BETA * (chosen - rejected)
        return (-0.9 * F.logsigmoid(logits) - 0.1 * F.logsigmoid(-logits)).mean()


class Ftx(Written):
    """LLaMA-Factory's `pref_ftx` (train/dpo/trainer.py, `get_batch_loss_metrics`)."""

    def written(self, chosen, rejected, means):
        return (-F.logsigmoid(BETA * (chosen - rejected)) - 0.5 * means).mean()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(11)
    pairs = [{"prompt": text(3 + i), "chosen": " " + text(4 + i % 3), "rejected": " " + text(7 - i)} for i in range(ROWS)]
    rated = [{"prompt": p["prompt"], "completion": p["chosen"], "label": i % 3 != 1} for i, p in enumerate(pairs)]

    tensors = {}
    for index, (pair, row) in enumerate(zip(pairs, rated)):
        ids = lambda words: [int(word) for word in words.split()]  # noqa: E731
        tensors[f"prompt.{index}"] = torch.tensor(ids(pair["prompt"]))
        # TRL ends every answer.
        tensors[f"chosen.{index}"] = torch.tensor(ids(pair["chosen"]) + [CONFIG.eos_token_id])
        tensors[f"rejected.{index}"] = torch.tensor(ids(pair["rejected"]) + [CONFIG.eos_token_id])
        tensors[f"good.{index}"] = torch.tensor([int(row["label"])])

    ranked, score = reward_model()
    tensors["score"] = score
    curves = {
        "reward_model": run(RewardTrainer, RewardConfig, pairs, model=ranked),
        "sigmoid": run(DPOTrainer, DPOConfig, pairs, loss_type="sigmoid"),
        "smoothed": run(Smoothed, DPOConfig, pairs),
        "ftx": run(Ftx, DPOConfig, pairs),
        "hinge": run(DPOTrainer, DPOConfig, pairs, loss_type="hinge"),
        "ipo": run(DPOTrainer, DPOConfig, pairs, loss_type="ipo"),
        "orpo": run(PaperOrpo, ORPOConfig, pairs),
        "simpo": run(CPOTrainer, CPOConfig, pairs, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5),
        "kto_pair": run(KtoPair, DPOConfig, pairs),
        "kto": run(KTOTrainer, KTOConfig, rated, desirable_weight=1.2, undesirable_weight=0.7),
    }
    for name, (losses, trainer) in curves.items():
        tensors[f"loss.{name}"] = torch.tensor(losses, dtype=torch.float64)
        print(name, losses[0], losses[-1])
    log = curves["sigmoid"][1].state.log_history
    for name in ("chosen", "rejected", "accuracies", "margins"):
        values = [entry[f"rewards/{name}"] for entry in log if f"rewards/{name}" in entry]
        tensors[f"rewards.{name}"] = torch.tensor(values, dtype=torch.float64)
    save_file(tensors, OUTPUT)
    OUTPUT.chmod(0o644)


if __name__ == "__main__":
    main()
