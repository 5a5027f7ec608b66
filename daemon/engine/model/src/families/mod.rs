//! Model families by Hugging Face `model_type`: one file each, named after it, and one line in `ALL`.
//!
//! A family turns `config.json` into a [`DecoderConfig`], whose `names` say where its weights lie. What its
//! configuration asks for and the decoder does not compute is refused by file and key.

mod bert;
mod gemma2;
mod gemma3_text;
mod gpt2;
mod llama;
mod mistral;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod reader;
mod rope;
mod t5;
mod vit;

use std::path::Path;

use justtrain_weights::Checkpoint;
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use crate::DecoderConfig;
use reader::ConfigReader;

trait Family: Sync {
    /// `model_type` in `config.json`.
    fn model_type(&self) -> &'static str;

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem>;
}

const ALL: &[&dyn Family] = &[
    &llama::Llama,
    &mistral::Mistral,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &qwen3_moe::Qwen3Moe,
    &gemma2::Gemma2,
    &gemma3_text::Gemma3Text,
    &phi3::Phi3,
    &gpt2::Gpt2,
    &opt::Opt,
    &t5::T5,
    &bert::Bert,
    &vit::Vit,
];

/// The linear layers inside the blocks of all families, by the last part of their names: what adapters can be put on.
pub const LINEAR_LAYERS: &[&str] = &[
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    // Phi-3.
    "qkv_proj",
    "gate_up_proj",
    // GPT-2.
    "c_attn",
    "c_proj",
    "c_fc",
    // OPT.
    "out_proj",
    "fc1",
    "fc2",
    // T5.
    "q",
    "k",
    "v",
    "o",
    "wi",
    "wi_0",
    "wi_1",
    "wo",
    // BERT.
    "query",
    "key",
    "value",
    "dense",
];

/// The tables of the vocabulary of all families, by the last part of their names: what an adapter is put on where it is asked for.
pub const TABLES: &[&str] = &["embed_tokens", "lm_head", "wte", "shared", "word_embeddings"];

/// The description of a checkpoint's decoder. `UnknownArchitecture` where no family fits.
pub fn decoder_config(checkpoint: &Checkpoint) -> Result<DecoderConfig, Problem> {
    let path = checkpoint.folder().map_or_else(|| checkpoint.path().to_owned(), |folder| folder.join("config.json"));
    let mut config = from_config(checkpoint.config(), &path)?;
    let has = |tensor: &str| checkpoint.shape(tensor).is_some();
    // Classifiers are saved without what they were before.
    if config.output_weight().is_some_and(|output| !has(&output)) && has(&config.names.classifier.weight()) {
        config.makes_words = false;
    }
    Ok(config)
}

/// The same from the values of a `config.json`; `path` is named in errors.
pub fn from_config(values: &Value, path: &Path) -> Result<DecoderConfig, Problem> {
    let config = ConfigReader { values, path: path.to_owned() };
    let model_type = config.values["model_type"].as_str().unwrap_or("nothing");
    let family = ALL.iter().find(|family| family.model_type() == model_type).ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|family| family.model_type()).collect();
        Problem::error(ProblemCode::UnknownArchitecture, "this kind of model is not supported", "暂不支持这种模型")
            .file(config.path.display())
            .key("model_type")
            .found(model_type)
            .expected(known.join(", "))
            .fix("choose a model of a supported family", "请选择受支持系列的模型")
    })?;
    family.decoder_config(&config)
}
