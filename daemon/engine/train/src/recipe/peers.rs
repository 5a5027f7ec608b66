//! Keys and values that other tools know and this version does not: a person who brings a recipe along gets the reason,
//! not a guess at a misspelling.

use justtrain_worker_api::{Problem, ProblemCode};

/// Methods that a later version brings.
const LATER_KEYS: &[&str] = &[
    "deepspeed",
    "eval_dataset",
    "fsdp",
    "interleave_probs",
    "max_samples",
    "mix_strategy",
    "report_to",
    "tf32",
    "use_badam",
];

/// What JustTrain decides itself, so that there is nothing to write.
const DECIDED_KEYS: &[&str] = &[
    "attn_implementation",
    "dataloader_num_workers",
    "dataset_dir",
    "ddp_timeout",
    "do_eval",
    "do_predict",
    "do_train",
    "eval_strategy",
    "evaluation_strategy",
    "flash_attention",
    "flash_attn",
    "output_dir",
    "overwrite_cache",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "plot_loss",
    "precompute_ref_log_probs",
    "preprocessing_num_workers",
    "ref_model",
    "ref_model_adapters",
    "ref_model_quantization_bit",
    "resume_from_checkpoint",
    "save_only_model",
    "save_strategy",
    "trust_remote_code",
];

/// Keys of which ours say the same in another way, and how.
const SAID_DIFFERENTLY: &[(&str, &str)] = &[
    ("bf16", "precision: bf16"),
    ("fp16", "precision: fp16"),
    ("init_lora_weights", "pissa_init: true"),
    ("dpo_beta", "pref_beta"),
    ("dpo_ftx", "pref_ftx"),
    ("kto_beta", "pref_beta"),
    ("kto_ftx", "pref_ftx"),
    ("rl", "stage"),
    ("load_in_4bit", "quantization_bit: 4"),
    ("load_in_8bit", "quantization_bit: 8"),
    ("loftq_config", "loftq_init: true"),
    ("peft_init_lora_weights", "pissa_init: true"),
    ("use_galore", "optim: galore_adamw"),
    ("use_muon", "optim: muon"),
];

/// The same for values of keys that are there.
const VALUES_SAID_DIFFERENTLY: &[(&str, &str, &str)] = &[
    ("metric_for_best_model", "loss", "metric_for_best_model: eval_loss"),
    ("stage", "ipo", "stage: dpo, pref_loss: ipo"),
    ("stage", "orpo", "stage: dpo, pref_loss: orpo"),
    ("stage", "simpo", "stage: dpo, pref_loss: simpo"),
    ("finetuning_type", "qlora", "finetuning_type: lora, quantization_bit: 4"),
    ("optim", "adamw_bnb_8bit", "optim: adamw_8bit"),
    ("optim", "adamw_torch", "optim: adamw"),
    ("optim", "adamw_torch_fused", "optim: adamw"),
    ("optim", "lion_32bit", "optim: lion"),
];

const LATER_VALUES: &[(&str, &[&str])] = &[
    ("lr_scheduler_type", &["cosine_warmup_with_min_lr", "greedy"]),
    ("optim", &["apollo_adamw", "galore_adafactor", "galore_adamw_8bit", "lion_8bit", "paged_adamw_8bit"]),
    ("pref_loss", &["apo_down", "apo_zero", "bco_pair", "exo_pair", "nca_pair", "robust", "sppo_hard"]),
    ("stage", &["ppo"]),
];

/// Why `key` is refused, where another tool has it.
pub(super) fn known_elsewhere(key: &str) -> Option<Problem> {
    if LATER_KEYS.contains(&key) {
        return Some(
            Problem::error(ProblemCode::UnknownKey, "not in this version yet", "当前版本尚不支持")
                .key(key)
                .fix("remove this line", "删除这一行"),
        );
    }
    if let Some((_, ours)) = SAID_DIFFERENTLY.iter().find(|(theirs, _)| *theirs == key) {
        return Some(
            Problem::error(ProblemCode::UnknownKey, "there is no such key", "没有这个键")
                .key(key)
                .expected(ours)
                .fix(format!("write \"{ours}\""), format!("改为“{ours}”")),
        );
    }
    DECIDED_KEYS.contains(&key).then(|| {
        Problem::error(ProblemCode::UnknownKey, "JustTrain decides this itself", "这一项由 JustTrain 自行决定")
            .key(key)
            .fix("remove this line", "删除这一行")
    })
}

/// Whether a later version will take this value.
pub(super) fn comes_later(key: &str, value: &str) -> bool {
    LATER_VALUES.iter().any(|(of, values)| *of == key && values.contains(&value))
}

/// What to write for a value that ours say in another way.
pub(super) fn instead(key: &str, value: &str) -> Option<&'static str> {
    let found = VALUES_SAID_DIFFERENTLY.iter().find(|(of, theirs, _)| *of == key && *theirs == value);
    found.map(|(.., ours)| *ours)
}
