//! What the keys of LoRA and its kin must satisfy.

use std::collections::BTreeSet;

use justtrain_model::adapters::{LoraConfig, LoraTargets, Patterns};
use justtrain_model::families;
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use super::resolve::patterns;
use super::rules::{invalid, no_regex};
use super::{FinetuningType, QuantizationType, Recipe, Stage};

/// Keys that mean nothing where every weight is trained.
const KEYS: [&str; 16] = [
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target",
    "layers_to_transform",
    "use_rslora",
    "use_dora",
    "pissa_init",
    "pissa_iter",
    "loftq_init",
    "loftq_iter",
    "modules_to_save",
    "bias",
    "rank_pattern",
    "alpha_pattern",
    "loraplus_lr_ratio",
];

pub(super) fn errors(recipe: &Recipe) -> Vec<Problem> {
    let of_patterns = ["rank_pattern", "alpha_pattern"].into_iter().zip([&recipe.rank_pattern, &recipe.alpha_pattern]);
    let broken = of_patterns.filter_map(|(key, written)| {
        let (pattern, error) = patterns(written, Value::as_f64).err()?;
        Some(no_regex(&format!("{key}.{pattern}"), &pattern, &error))
    });
    broken
        .chain(lora_target(recipe))
        .chain(other_than_adapter(recipe))
        .chain(adapter_beside_full(recipe))
        .chain(start(recipe))
        .chain(pair_and_in_full(recipe))
        .chain(tables(recipe))
        .collect()
}

/// What is wrong with an adapter's own files, at the key that names it.
pub(super) fn unreadable(problem: Problem) -> Problem {
    let parts = [&problem.file, &problem.key, &problem.found].into_iter().flatten().cloned();
    let found = parts.collect::<Vec<_>>().join(": ");
    Problem { file: None, line: None, column: None, ..problem }.key("adapter_name_or_path").found(found)
}

fn adapter_beside_full(recipe: &Recipe) -> Option<Problem> {
    let method = recipe.finetuning_type.name();
    recipe.trains_weights().then(|| {
        invalid(
            "adapter_name_or_path",
            &format!("finetuning_type {method} trains the model's own weights and no adapter"),
            &format!("finetuning_type 为 {method} 时训练模型本身的权重，没有适配器"),
        )
        .expected("finetuning_type: lora")
        .fix(
            "write finetuning_type: lora; or export the adapter merged, and train that model",
            "写 finetuning_type: lora；或先合并导出适配器，再训练那个模型",
        )
    })
}

/// A pair that does not start at zero is taken out of the weight as it is, and makes up for what its form loses.
fn start(recipe: &Recipe) -> Vec<Problem> {
    let gguf = recipe.quantization() == Some(QuantizationType::Gguf);
    let refuse = |key: &str, other: &str, en: &str, zh: &str| {
        invalid(key, en, zh)
            .found(format!("{key} with {other}"))
            .fix(format!("remove this line, or {other}"), format!("删除这一行，或删除 {other}"))
    };
    let mut problems = Vec::new();
    for (key, written) in [("pissa_init", recipe.pissa_init), ("loftq_init", recipe.loftq_init)] {
        if !written {
            continue;
        }
        if gguf {
            let en = "the blocks of a GGUF stay as they are, and nothing can be taken out of them";
            problems.push(refuse(key, "quantization_type: gguf", en, "GGUF 的量化块原样保留，无法从中取出任何部分"));
        }
        if recipe.use_dora {
            let en = "magnitudes of a changed weight cannot be exported for the original one";
            problems.push(refuse(key, "use_dora", en, "改变后的权重的大小无法导出给原来的权重使用"));
        }
        if recipe.adapter_name_or_path.is_some() {
            let en = "an adapter that is there already has its start behind it";
            problems.push(refuse(key, "adapter_name_or_path", en, "已有的适配器不再需要初始化"));
        }
    }
    if recipe.loftq_init && recipe.pissa_init {
        problems.push(refuse("loftq_init", "pissa_init", "a pair has one start", "一对矩阵只能有一种初始化"));
    }
    if recipe.loftq_init && recipe.quantization().is_none() {
        problems.push(
            invalid(
                "loftq_init",
                "without quantisation nothing is lost that LoftQ could make up for",
                "没有量化就没有损失，LoftQ 无从弥补",
            )
            .expected("quantization_bit: 4 | 8")
            .fix("write quantization_bit: 4, or remove this line", "写 quantization_bit: 4，或删除这一行"),
        );
    }
    for (key, init, written) in
        [("pissa_iter", "pissa_init", recipe.pissa_init), ("loftq_iter", "loftq_init", recipe.loftq_init)]
    {
        if !written && recipe.finetuning_type == FinetuningType::Lora {
            problems.push(
                invalid(key, &format!("this is a setting of {init}"), &format!("这是 {init} 的设置"))
                    .expected(format!("{init}: true"))
                    .fix(format!("write {init}: true, or remove this line"), format!("写 {init}: true，或删除这一行")),
            );
        }
    }
    problems
}

fn pair_and_in_full(recipe: &Recipe) -> Option<Problem> {
    let written = recipe.written_lora_config();
    let LoraTargets::Named(targets) = &written.targets else { return None };
    let both = targets.iter().find(|target| written.modules_to_save.contains(target))?;
    Some(
        invalid(
            "modules_to_save",
            "what is trained in full gets no LoRA pair, and lora_target names it as well",
            "完整训练的模块不再有 LoRA，而 lora_target 也写了它",
        )
        .found(both)
        .fix("take it out of one of the two", "从其中一项删除它"),
    )
}

/// What is not computed for the tables of the vocabulary.
fn tables(recipe: &Recipe) -> Vec<Problem> {
    // Blocks are no question of tables.
    let config = LoraConfig { layers: None, ..recipe.lora_config() };
    let table = families::TABLES.iter().find(|table| !recipe.trains_weights() && config.targets_table(table));
    let Some(table) = table else { return Vec::new() };
    let refuse = |key: &str, en: &str, zh: &str| {
        invalid(key, en, zh).found(format!("{key} with lora_target: {table}")).fix(
            format!("remove this line, or take {table} out of lora_target"),
            format!("删除这一行，或从 lora_target 删除 {table}"),
        )
    };
    let mut problems = Vec::new();
    if recipe.layers_to_transform().is_some() {
        let en = "tables of the vocabulary are in no block, and would get no pair";
        problems.push(refuse("layers_to_transform", en, "词表不属于任何一块，因此不会有 LoRA"));
    }
    if matches!(recipe.stage, Stage::Rm | Stage::Cls) && recipe.adapter.is_none() && config.targets_table("lm_head") {
        problems.push(
            invalid(
                "lora_target",
                "a model that judges makes no words and has no lm_head",
                "判断模型不生成文字，没有 lm_head",
            )
            .found("lm_head")
            .fix("take lm_head out of the list", "从列表中删除 lm_head"),
        );
    }
    for (key, written) in [("pissa_init", recipe.pissa_init), ("loftq_init", recipe.loftq_init)] {
        if written {
            let en = "this start is computed for linear layers inside the blocks, not for tables of the vocabulary";
            problems.push(refuse(key, en, "这种初始化只用于各块内的线性层，不用于词表"));
        }
    }
    if recipe.olora_lambda.is_some() {
        let en = "pairs of several stages lie side by side on linear layers inside the blocks, not on tables";
        problems.push(refuse("olora_lambda", en, "多个阶段的矩阵对只能并列放在各块内的线性层上，不能放在词表上"));
    }
    if config.dora {
        let en = "DoRA is computed for linear layers inside the blocks, not for tables of the vocabulary";
        problems.push(refuse("use_dora", en, "DoRA 只用于各块内的线性层，不用于词表"));
    }
    let of_input = families::TABLES.iter().any(|table| *table != "lm_head" && config.targets_table(table));
    if recipe.has_loraplus() && of_input {
        let en = "LoRA+ says nothing of embeddings, whose A starts at zero in place of B";
        problems.push(refuse("loraplus_lr_ratio", en, "LoRA+ 不适用于词嵌入：其初始为零的是 A 而不是 B"));
    }
    problems
}

/// Keys that say something else than the adapter to go on with.
fn other_than_adapter(recipe: &Recipe) -> Vec<Problem> {
    let (Some(adapter), written) = (&recipe.adapter, recipe.written_lora_config()) else { return Vec::new() };
    let show = |config: &LoraConfig| {
        [
            ("lora_rank", config.rank.to_string()),
            ("lora_alpha", config.alpha.to_string()),
            ("lora_dropout", config.dropout.to_string()),
            ("lora_target", show_targets(&config.targets)),
            ("use_rslora", config.rslora.to_string()),
            ("use_dora", config.dora.to_string()),
            ("modules_to_save", config.modules_to_save.join(", ")),
            ("bias", config.bias.name().to_owned()),
            ("rank_pattern", show_patterns(&config.rank_pattern)),
            ("alpha_pattern", show_patterns(&config.alpha_pattern)),
        ]
    };
    let differing = show(&written).into_iter().zip(show(adapter)).filter(|((_, written), (_, has))| written != has);
    let problem = |((key, written), (_, has)): ((&str, String), (&str, String))| {
        invalid(key, "the adapter of adapter_name_or_path was made otherwise", "adapter_name_or_path 的适配器并非如此")
            .found(written)
            .expected(has)
            .fix("remove this line; the adapter brings its own", "删除这一行，以适配器自带的为准")
    };
    differing.map(problem).collect()
}

fn show_targets(targets: &LoraTargets) -> String {
    match targets {
        LoraTargets::All => "all".to_owned(),
        LoraTargets::Named(names) => {
            names.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
        }
        LoraTargets::Matching(pattern) => pattern.clone(),
    }
}

fn show_patterns<T: Copy + ToString>(patterns: &Patterns<T>) -> String {
    patterns.iter().map(|(pattern, value)| format!("{pattern}: {}", value.to_string())).collect::<Vec<_>>().join(", ")
}

fn lora_target(recipe: &Recipe) -> Vec<Problem> {
    let LoraTargets::Named(names) = recipe.lora_target() else { return Vec::new() };
    let unknown =
        names.iter().filter(|name| ![families::LINEAR_LAYERS, families::TABLES].concat().contains(&name.as_str()));
    let mut problems: Vec<_> = unknown
        .map(|name| {
            invalid("lora_target", "there is no such layer that can have a LoRA pair", "没有这样的可加 LoRA 的层")
                .found(format!("\"{name}\""))
                .expected(format!("all | {}", [families::LINEAR_LAYERS, families::TABLES].concat().join(" | ")))
                .fix(
                    "write all, or names from this list; norms are trained by modules_to_save",
                    "写 all，或写列表中的名字；归一化层用 modules_to_save 训练",
                )
        })
        .collect();
    if names.is_empty() {
        problems.push(
            invalid("lora_target", "an empty list would train nothing", "空列表表示什么也不训练")
                .fix("write all, or name layers", "写 all，或写出层的名字"),
        );
    }
    problems
}

pub(super) fn warnings(recipe: &Recipe) -> Vec<Problem> {
    let keys = match recipe.finetuning_type {
        FinetuningType::Lora => [].as_slice(),
        FinetuningType::Full | FinetuningType::Freeze => KEYS.as_slice(),
    };
    let method = recipe.finetuning_type.name();
    let unused = |key: &&str| {
        Problem::warning(
            ProblemCode::InvalidValue,
            format!("finetuning_type {method} trains no LoRA pair; this is not used"),
            format!("finetuning_type 为 {method} 时没有 LoRA，这一项不起作用"),
        )
        .key(*key)
        .fix("remove this line, or write finetuning_type: lora", "删除这一行，或写 finetuning_type: lora")
    };
    keys.iter().map(unused).collect()
}
