//! What does not go with a model of two stacks, such as T5; only with the model at hand can it be told.

use justtrain_model::DecoderConfig;
use justtrain_worker_api::{Failure, FailureReason, Problem};

use super::rules::invalid;
use super::{Recipe, Stage};

/// `RecipeInvalid`, with everything at once.
pub(crate) fn check(recipe: &Recipe, config: &DecoderConfig) -> Result<(), Failure> {
    if config.seq2seq.is_none() {
        return Ok(());
    }
    let problems =
        [stage(recipe), template(recipe), prompt(recipe)].into_iter().flatten().chain(tables(recipe, config));
    let problems: Vec<Problem> = problems.collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure { reason: FailureReason::RecipeInvalid, problems }) }
}

fn stage(recipe: &Recipe) -> Option<Problem> {
    (recipe.stage != Stage::Sft).then(|| {
        invalid(
            "stage",
            "this model has an encoder and a decoder: it learns answers to what it reads",
            "该模型由编码器和解码器组成：它学习对所读内容的回答",
        )
        .found(recipe.stage_name())
        .expected("sft")
        .fix(
            "write stage: sft and name data with answers, or choose another model",
            "请写 stage: sft 并使用带回答的数据，或选择其他模型",
        )
    })
}

fn template(recipe: &Recipe) -> Option<Problem> {
    (recipe.template != "auto").then(|| {
        invalid(
            "template",
            "this model knows no chat: its encoder reads the prompt as it is",
            "该模型不使用对话格式：编码器按原文读取提示",
        )
        .found(&recipe.template)
        .expected("auto")
        .fix("remove this line", "删除这一行")
    })
}

fn prompt(recipe: &Recipe) -> Option<Problem> {
    recipe.train_on_prompt.then(|| {
        invalid(
            "train_on_prompt",
            "this model's encoder reads the prompt, and its decoder never says it",
            "该模型的编码器读取提示，解码器不会说出提示",
        )
        .found(true)
        .fix("remove this line", "删除这一行")
    })
}

/// In PEFT, encoder and decoder hold on to the table that both read from, and never see one in its place.
fn tables(recipe: &Recipe, config: &DecoderConfig) -> Vec<Problem> {
    if recipe.trains_weights() {
        return Vec::new();
    }
    let (lora, names) = (recipe.lora_config(), config.names);
    let saved = |module: &str| lora.in_full(module, false).weight;
    let output = names.output.filter(|output| config.tied_embeddings && saved(output));
    let saved = output.or(Some(names.embeddings).filter(|table| saved(table)));
    let targeted = Some(names.embeddings).filter(|table| lora.targets_table(table));
    let of_key = |(key, table): (&str, Option<&str>)| {
        let table = table?;
        let problem = invalid(
            key,
            "encoder and decoder share this table, and PEFT has no adapter that both would see",
            "编码器和解码器共用这张词表，PEFT 没有两者都能用到的适配器",
        );
        Some(problem.found(table).fix(
            format!("take {table} out of {key}, or train it with finetuning_type: freeze"),
            format!("从 {key} 删除 {table}，或用 finetuning_type: freeze 训练它"),
        ))
    };
    [("lora_target", targeted), ("modules_to_save", saved)].into_iter().filter_map(of_key).collect()
}
