//! `t5`: T5 and Flan-T5 (Raffel et al. 2019, arXiv 1910.10683): an encoder, and a decoder that attends to it; positions are told by
//! distance. Version 1.0 has one table for both ends, whose logits are scaled, and ReLU; 1.1 has two, and a gate.

use justtrain_kernels::{Activation, Heads};
use justtrain_worker_api::{Problem, ProblemCode};

use super::Family;
use super::reader::ConfigReader;
use crate::config::{
    Biases, DecoderConfig, LayerConfig, MlpKind, NormKind, NormPlace, PlainActivation, Positions, Seq2Seq,
};
use crate::names::{BlockNames, JointNames, SCORE, Seq2SeqNames, WeightNames};

const QKV: JointNames =
    JointNames::Apart(&["layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"]);

const ENCODER: BlockNames = BlockNames {
    attention_norm: "layer.0.layer_norm",
    qkv: QKV,
    qk_norms: None,
    attention_output: "layer.0.SelfAttention.o",
    attention_output_norm: None,
    mlp_norm: "layer.1.layer_norm",
    up: JointNames::Apart(&["layer.1.DenseReluDense.wi"]),
    down: "layer.1.DenseReluDense.wo",
    experts: None,
    mlp_output_norm: None,
};

const DECODER: Seq2SeqNames = Seq2SeqNames {
    encoder_norm: "encoder.final_layer_norm",
    blocks: "decoder.block",
    block: BlockNames {
        mlp_norm: "layer.2.layer_norm",
        up: JointNames::Apart(&["layer.2.DenseReluDense.wi"]),
        down: "layer.2.DenseReluDense.wo",
        ..ENCODER
    },
    cross_norm: "layer.1.layer_norm",
    cross_qkv: ["layer.1.EncDecAttention.q", "layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"],
    cross_output: "layer.1.EncDecAttention.o",
    position_biases: [
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    ],
};

const NAMES: WeightNames = WeightNames {
    embeddings: "shared",
    positions: None,
    token_types: None,
    embedding_norm: None,
    blocks: "encoder.block",
    block: ENCODER,
    seq2seq: Some(DECODER),
    norm: Some("decoder.final_layer_norm"),
    output: Some("lm_head"),
    classifier: SCORE,
    // The table of tokens twice more, and one that the first checkpoints had and nothing reads.
    unused: &[
        "encoder.embed_tokens.",
        "decoder.embed_tokens.",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.",
    ],
    in_files: &[],
    transposed: false,
};

/// Of feed-forward networks with a gate.
const GATED: WeightNames = WeightNames {
    block: BlockNames {
        up: JointNames::Apart(&["layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"]),
        ..ENCODER
    },
    seq2seq: Some(Seq2SeqNames {
        block: BlockNames {
            up: JointNames::Apart(&["layer.2.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi_1"]),
            ..DECODER.block
        },
        ..DECODER
    }),
    ..NAMES
};

pub(super) struct T5;

impl Family for T5 {
    fn model_type(&self) -> &'static str {
        "t5"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        config.require(&[("is_encoder_decoder", "true"), ("quantization_config", "null")])?;
        let mlp = match config.values["feed_forward_proj"].as_str() {
            None | Some("relu") => MlpKind::Plain(PlainActivation::Relu),
            Some("gated-gelu") => MlpKind::Gated(Activation::GeluTanh),
            Some("gated-silu") => MlpKind::Gated(Activation::Silu),
            Some(_) => {
                let found = &config.values["feed_forward_proj"];
                let known = "relu | gated-gelu | gated-silu";
                return Err(config.wrong(ProblemCode::InvalidValue, "feed_forward_proj", found, known));
            }
        };
        let names = if matches!(mlp, MlpKind::Gated(_)) { &GATED } else { &NAMES };
        // Since version 5 transformers writes that the tables are tied, even where they are two, and beside it what it meant before.
        let tied = config.flag_or("tie_word_embeddings", true)?;
        let scaled = config.flag_or("scale_decoder_outputs", tied)?;
        let (hidden_size, query) = (config.size("d_model")?, config.size("num_heads")?);
        let encoder_blocks = config.size("num_layers")?;
        let decoder_blocks = config.size_or("num_decoder_layers", encoder_blocks)?;
        let token = |key: &str, default: usize| match &config.values[key] {
            // A size is above 0, which a token's number need not be.
            number if number.as_u64() == Some(0) => Ok(0),
            _ => config.size_or(key, default).map(|id| id as u32),
        };
        Ok(DecoderConfig {
            hidden_size,
            intermediate_size: config.size("d_ff")?,
            heads: Heads { query, key_value: query, dim: config.size("d_kv")? },
            vocab_size: config.size("vocab_size")?,
            patches: None,
            makes_words: true,
            tied_embeddings: tied && scaled,
            // However far apart two tokens are, there is a bias for them.
            max_positions: usize::MAX,
            embedding_scale: 1.0,
            output_scale: if scaled { 1.0 / (hidden_size as f32).sqrt() } else { 1.0 },
            seq2seq: Some(Seq2Seq {
                encoder_blocks,
                start: token("decoder_start_token_id", 0)?,
                end: token("eos_token_id", 1)?,
            }),
            positions: Positions::Distances {
                buckets: config.size_or("relative_attention_num_buckets", 32)?,
                furthest: config.size_or("relative_attention_max_distance", 128)?,
            },
            layers: vec![LayerConfig::default(); encoder_blocks + decoder_blocks],
            causal: true,
            norm_place: NormPlace::Before,
            norm: NormKind::Rms,
            norm_epsilon: config.number_or_null("layer_norm_epsilon", Some(1e-6))?.unwrap_or(1e-6) as f32,
            attention_scale: 1.0,
            attention_soft_cap: None,
            logit_soft_cap: None,
            mlp,
            experts: None,
            biases: Biases::default(),
            names,
        })
    }
}
