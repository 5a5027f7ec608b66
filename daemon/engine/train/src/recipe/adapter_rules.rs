//! What the keys of LoRA and its kin must satisfy.

use justtrain_model::adapters::LoraTargets;
use justtrain_model::families;
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use super::resolve::patterns;
use super::rules::invalid;
use super::{FinetuningType, Recipe};

/// Keys that mean nothing where every weight is trained.
const KEYS: [&str; 8] = [
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "loraplus_lr_ratio",
];

pub(super) fn errors(recipe: &Recipe) -> Vec<Problem> {
    let of_patterns = ["rank_pattern", "alpha_pattern"].into_iter().zip([&recipe.rank_pattern, &recipe.alpha_pattern]);
    let broken = of_patterns.filter_map(|(key, written)| {
        let (pattern, error) = patterns(written, Value::as_f64).err()?;
        Some(no_pattern(&format!("{key}.{pattern}"), &error))
    });
    broken.chain(lora_target(recipe)).collect()
}

/// The key's last part is no regular expression.
pub(super) fn no_pattern(key: &str, error: &regex::Error) -> Problem {
    // The last line says what is wrong; those before draw it.
    let reason = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
    invalid(key, "this is not a regular expression", "这不是正确的正则表达式").found(reason).fix(
        "write a part of the names, such as q_proj; put a backslash before a dot",
        "写名字的一部分，例如 q_proj；点号前加反斜杠",
    )
}

fn lora_target(recipe: &Recipe) -> Vec<Problem> {
    let LoraTargets::Named(names) = recipe.lora_target() else { return Vec::new() };
    let unknown = names.iter().filter(|name| !families::LINEAR_LAYERS.contains(&name.as_str()));
    let mut problems: Vec<_> = unknown
        .map(|name| {
            invalid("lora_target", "there is no such linear layer", "没有这样的线性层")
                .found(format!("\"{name}\""))
                .expected(format!("all | {}", families::LINEAR_LAYERS.join(" | ")))
                .fix("write all, or names from this list", "写 all，或写列表中的名字")
        })
        .collect();
    if names.is_empty() {
        problems.push(
            invalid("lora_target", "an empty list would train nothing", "空列表表示什么也不训练")
                .fix("write all, or name linear layers", "写 all，或写出线性层的名字"),
        );
    }
    problems
}

pub(super) fn warnings(recipe: &Recipe) -> Vec<Problem> {
    let keys = match recipe.finetuning_type {
        FinetuningType::Lora => [].as_slice(),
        FinetuningType::Full => KEYS.as_slice(),
    };
    let unused = |key: &&str| {
        Problem::warning(
            ProblemCode::InvalidValue,
            "finetuning_type full trains no LoRA pair; this is not used",
            "finetuning_type 为 full 时没有 LoRA，这一项不起作用",
        )
        .key(*key)
        .fix("remove this line, or write finetuning_type: lora", "删除这一行，或写 finetuning_type: lora")
    };
    keys.iter().map(unused).collect()
}
