//! What the optimiser's keys must satisfy, and the patterns of `learning_rates`.

use justtrain_worker_api::{Problem, ProblemCode};
use regex::Regex;

use super::rules::{invalid, no_regex};
use super::{Precision, Recipe};
use crate::optim::OptimizerType;

/// Keys that some optimisers take and others do not.
const SETTINGS: [&str; 8] = [
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "momentum",
    "nesterov",
    "galore_rank",
    "galore_update_interval",
    "galore_scale",
];

pub(super) fn errors(recipe: &Recipe) -> Vec<Problem> {
    let single = [nesterov_without_momentum(recipe), galore_beside_lora(recipe), mean_in_16_bits(recipe)];
    single.into_iter().flatten().chain(patterns(recipe)).collect()
}

/// Settings of another optimiser.
pub(super) fn warnings(recipe: &Recipe) -> Vec<Problem> {
    let optim = recipe.optim;
    let foreign = SETTINGS.iter().filter(|key| !optim.settings().contains(key));
    let warning = |key: &&str| {
        Problem::warning(
            ProblemCode::InvalidValue,
            format!("{} does not take this; it is not used", optim.name()),
            format!("{} 没有这一项，它不起作用", optim.name()),
        )
        .key(*key)
        .fix("remove this line, or change optim", "删除这一行，或修改 optim")
    };
    foreign.map(warning).collect()
}

fn nesterov_without_momentum(recipe: &Recipe) -> Option<Problem> {
    let takes_both = recipe.optim.settings().contains(&"nesterov");
    (takes_both && recipe.nesterov() && recipe.momentum() == 0.0).then(|| {
        invalid("nesterov", "Nesterov's momentum needs a momentum", "Nesterov 动量需要 momentum")
            .expected("momentum > 0")
            .fix("add momentum: 0.9, or remove this line", "加上 momentum: 0.9，或删除这一行")
    })
}

fn galore_beside_lora(recipe: &Recipe) -> Option<Problem> {
    let galore = recipe.optim == OptimizerType::GaloreAdamw;
    (galore && !recipe.trains_weights()).then(|| {
        invalid(
            "optim",
            "galore_adamw projects the gradients of whole matrices, and LoRA's are of low rank already",
            "galore_adamw 投影整个矩阵的梯度，而 LoRA 的矩阵本来就是低秩的",
        )
        .expected("finetuning_type: full")
        .fix("write finetuning_type: full, or optim: adamw", "写 finetuning_type: full，或写 optim: adamw")
    })
}

/// Weights in 16 bits are rounded by chance: they would not come back as they were from an exchange with their mean.
fn mean_in_16_bits(recipe: &Recipe) -> Option<Problem> {
    let in_16_bits = recipe.trains_weights() && recipe.precision == Precision::Bf16;
    (in_16_bits && recipe.ema_decay.is_some()).then(|| {
        invalid(
            "ema_decay",
            "a mean of weights goes with weights in 32 bits, and precision is bf16",
            "权重的滑动平均需要 32 位权重，而 precision 是 bf16",
        )
        .expected("precision: fp32")
        .fix("write precision: fp32, or remove this line", "写 precision: fp32，或删除这一行")
    })
}

fn patterns(recipe: &Recipe) -> Vec<Problem> {
    let broken = recipe.learning_rates().filter_map(|(pattern, _)| Some((pattern, Regex::new(pattern).err()?)));
    broken.map(|(pattern, error)| no_regex(&format!("learning_rates.{pattern}"), pattern, &error)).collect()
}
