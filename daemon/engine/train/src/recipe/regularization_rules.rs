//! What the regularisers' keys must satisfy.

use justtrain_worker_api::Problem;

use super::rules::invalid;
use super::{Precision, Recipe};

pub(super) fn errors(recipe: &Recipe) -> Vec<Problem> {
    let mut problems: Vec<Problem> = nothing_differs(recipe).into_iter().chain(rounded_mix(recipe)).collect();
    if !recipe.trains_weights() {
        let written = [("l2sp_alpha", recipe.l2sp_alpha), ("mixout_p", recipe.mixout_p)];
        problems.extend(written.into_iter().filter(|(_, value)| value.is_some()).map(|(key, _)| beside_lora(key)));
    }
    problems
}

/// Two passes that nothing makes different agree already.
fn nothing_differs(recipe: &Recipe) -> Option<Problem> {
    let in_adapters = !recipe.trains_weights() && recipe.lora_dropout > 0.0;
    let drops = in_adapters || recipe.attention_dropout > 0.0 || recipe.resid_pdrop > 0.0;
    (recipe.rdrop_alpha.is_some() && !drops && recipe.neftune_noise_alpha.is_none()).then(|| {
        invalid(
            "rdrop_alpha",
            "R-Drop compares two passes with different dropout, and nothing is dropped",
            "R-Drop 比较两次不同 dropout 的结果，而这里没有任何 dropout",
        )
        .expected("lora_dropout | attention_dropout | resid_pdrop > 0")
        .fix(
            "add resid_pdrop: 0.1, or lora_dropout: 0.1 with LoRA",
            "加上 resid_pdrop: 0.1，使用 LoRA 时也可加 lora_dropout: 0.1",
        )
    })
}

fn beside_lora(key: &str) -> Problem {
    invalid(
        key,
        "this holds the model's own weights near their start, and beside LoRA they are frozen there",
        "这一项让模型自身的权重接近初始值，而 LoRA 中它们本来就是冻结的",
    )
    .expected("finetuning_type: full | freeze")
    .fix(
        "remove this line; weight_decay holds an adapter near the base model",
        "删除这一行；weight_decay 会让适配器接近基础模型",
    )
}

/// Mixed weights in 16 bits would be rounded by chance a second time.
fn rounded_mix(recipe: &Recipe) -> Option<Problem> {
    (recipe.mixout_p.is_some() && recipe.trains_weights() && recipe.precision == Precision::Bf16).then(|| {
        invalid(
            "mixout_p",
            "mixing goes with weights in 32 bits, and precision is bf16",
            "混合需要 32 位权重，而 precision 是 bf16",
        )
        .expected("precision: fp32")
        .fix("write precision: fp32, or remove this line", "写 precision: fp32，或删除这一行")
    })
}
