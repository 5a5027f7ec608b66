//! `bert`: an encoder (Devlin et al. 2018, arXiv 1810.04805), here for classification: learned positions, a table that tells the
//! texts of a pair apart, norms after the residuals, and a classifier that reads the first token through a pooler.

use justtrain_worker_api::{Problem, ProblemCode};

use super::Family;
use super::reader::ConfigReader;
use crate::config::{
    Biases, DecoderConfig, LayerConfig, MlpKind, NormKind, NormPlace, PlainActivation, Positions, TOKEN_TYPES,
};
use crate::names::{BlockNames, ClassifierNames, JointNames, Reads, WeightNames};

const NAMES: WeightNames = WeightNames {
    embeddings: "bert.embeddings.word_embeddings",
    positions: Some("bert.embeddings.position_embeddings"),
    token_types: Some("bert.embeddings.token_type_embeddings"),
    embedding_norm: Some("bert.embeddings.LayerNorm"),
    blocks: "bert.encoder.layer",
    block: BlockNames {
        attention_norm: "attention.output.LayerNorm",
        qkv: JointNames::Apart(&["attention.self.query", "attention.self.key", "attention.self.value"]),
        qk_norms: None,
        attention_output: "attention.output.dense",
        attention_output_norm: None,
        mlp_norm: "output.LayerNorm",
        up: JointNames::Apart(&["intermediate.dense"]),
        down: "output.dense",
        experts: None,
        mlp_output_norm: None,
    },
    seq2seq: None,
    norm: None,
    output: None,
    classifier: ClassifierNames {
        pooler: Some("bert.pooler.dense"),
        output: "classifier",
        bias: true,
        reads: Reads::FirstToken,
        class: "ForSequenceClassification",
        peft_task: Some("SEQ_CLS"),
    },
    // Heads for masked words and for the next sentence, and a constant.
    unused: &["cls.", "bert.embeddings.position_ids", "embeddings.position_ids"],
    in_files: &[],
    transposed: false,
};

pub(super) struct Bert;

impl Family for Bert {
    fn model_type(&self) -> &'static str {
        "bert"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        let types = TOKEN_TYPES.to_string();
        config.require(&[
            ("position_embedding_type", "\"absolute\""),
            ("is_decoder", "false"),
            ("add_cross_attention", "false"),
            ("type_vocab_size", &types),
            ("quantization_config", "null"),
        ])?;
        let activation = match config.values["hidden_act"].as_str() {
            None | Some("gelu") => PlainActivation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => PlainActivation::GeluTanh,
            Some("relu") => PlainActivation::Relu,
            Some(_) => {
                let found = &config.values["hidden_act"];
                let known = "gelu | gelu_new | gelu_pytorch_tanh | relu";
                return Err(config.wrong(ProblemCode::InvalidValue, "hidden_act", found, known));
            }
        };
        let heads = config.heads(config.equal_head_dim()?)?;
        let rows = config.size("max_position_embeddings")?;
        Ok(DecoderConfig {
            hidden_size: config.size("hidden_size")?,
            intermediate_size: config.size("intermediate_size")?,
            heads,
            vocab_size: config.size("vocab_size")?,
            patches: None,
            makes_words: false,
            tied_embeddings: false,
            max_positions: rows,
            embedding_scale: 1.0,
            output_scale: 1.0,
            seq2seq: None,
            positions: Positions::Learned { rows, offset: 0 },
            layers: vec![LayerConfig::default(); config.size("num_hidden_layers")?],
            causal: false,
            norm_place: NormPlace::After,
            norm: NormKind::Layer,
            norm_epsilon: config.number_or_null("layer_norm_eps", Some(1e-12))?.unwrap_or(1e-12) as f32,
            attention_scale: 1.0 / (heads.dim as f32).sqrt(),
            attention_soft_cap: None,
            logit_soft_cap: None,
            mlp: MlpKind::Plain(activation),
            experts: None,
            biases: Biases { qkv: true, attention_output: true, mlp: true },
            names: &NAMES,
        })
    }
}
