//! `vit`: an encoder of images (Dosovitskiy et al. 2020, arXiv 2010.11929) for classification: patches as tokens, norms before
//! attention and feed-forward network, and a classifier that reads the token before them.
//!
//! Modules are called as transformers 5 calls them, since adapters go by these names; its files keep the names of before.

use justtrain_worker_api::{Problem, ProblemCode};

use super::Family;
use super::reader::ConfigReader;
use crate::config::{
    Biases, DecoderConfig, LayerConfig, MlpKind, NormKind, NormPlace, Patches, PlainActivation, Positions,
};
use crate::names::{BlockNames, ClassifierNames, JointNames, Reads, WeightNames};

const NAMES: WeightNames = WeightNames {
    embeddings: "vit.embeddings",
    positions: None,
    token_types: None,
    embedding_norm: None,
    blocks: "vit.layers",
    block: BlockNames {
        attention_norm: "layernorm_before",
        qkv: JointNames::Apart(&["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
        qk_norms: None,
        attention_output: "attention.o_proj",
        attention_output_norm: None,
        mlp_norm: "layernorm_after",
        up: JointNames::Apart(&["mlp.fc1"]),
        down: "mlp.fc2",
        experts: None,
        mlp_output_norm: None,
    },
    seq2seq: None,
    norm: Some("vit.layernorm"),
    output: None,
    classifier: ClassifierNames {
        pooler: None,
        output: "classifier",
        bias: true,
        reads: Reads::FirstToken,
        class: "ForImageClassification",
        peft_task: None,
    },
    unused: &["vit.pooler.", "pooler.", "vit.embeddings.mask_token", "embeddings.mask_token"],
    in_files: &[
        ("vit.layers.", "vit.encoder.layer."),
        (".attention.q_proj", ".attention.attention.query"),
        (".attention.k_proj", ".attention.attention.key"),
        (".attention.v_proj", ".attention.attention.value"),
        (".attention.o_proj", ".attention.output.dense"),
        (".mlp.fc1", ".intermediate.dense"),
        (".mlp.fc2", ".output.dense"),
    ],
    transposed: false,
};

pub(super) struct Vit;

impl Family for Vit {
    fn model_type(&self) -> &'static str {
        "vit"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        config.require(&[("hidden_act", "\"gelu\""), ("quantization_config", "null")])?;
        let heads = config.heads(config.equal_head_dim()?)?;
        let patches = Patches {
            image_size: config.size_or("image_size", 224)?,
            patch_size: config.size_or("patch_size", 16)?,
            channels: config.size_or("num_channels", 3)?,
        };
        if !patches.image_size.is_multiple_of(patches.patch_size) {
            let expected = format!("a multiple of patch_size, {}", patches.patch_size);
            let found = &config.values["image_size"];
            return Err(config.wrong(ProblemCode::InvalidValue, "image_size", found, &expected));
        }
        Ok(DecoderConfig {
            hidden_size: config.size("hidden_size")?,
            intermediate_size: config.size("intermediate_size")?,
            heads,
            vocab_size: 0,
            patches: Some(patches),
            makes_words: false,
            tied_embeddings: false,
            max_positions: patches.tokens(),
            embedding_scale: 1.0,
            output_scale: 1.0,
            seq2seq: None,
            positions: Positions::Learned { rows: patches.tokens(), offset: 0 },
            layers: vec![LayerConfig::default(); config.size("num_hidden_layers")?],
            causal: false,
            norm_place: NormPlace::Before,
            norm: NormKind::Layer,
            norm_epsilon: config.number_or_null("layer_norm_eps", Some(1e-12))?.unwrap_or(1e-12) as f32,
            attention_scale: 1.0 / (heads.dim as f32).sqrt(),
            attention_soft_cap: None,
            logit_soft_cap: None,
            mlp: MlpKind::Plain(PlainActivation::Gelu),
            experts: None,
            biases: Biases { qkv: config.flag_or("qkv_bias", true)?, attention_output: true, mlp: true },
            names: &NAMES,
        })
    }
}
