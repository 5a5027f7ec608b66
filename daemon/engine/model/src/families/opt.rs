//! `opt`: OPT (arXiv 2205.01068), all sizes but 350M, whose norms stand behind the residuals. Learned positions, two rows
//! in; LayerNorm; ReLU.

use justtrain_kernels::Heads;
use justtrain_worker_api::Problem;

use super::Family;
use super::reader::ConfigReader;
use crate::config::{Biases, DecoderConfig, LayerConfig, MlpKind, NormKind, NormPlace, PlainActivation, Positions};
use crate::names::{BlockNames, JointNames, SCORE, WeightNames};

const NAMES: WeightNames = WeightNames {
    embeddings: "model.decoder.embed_tokens",
    positions: Some("model.decoder.embed_positions"),
    token_types: None,
    embedding_norm: None,
    blocks: "model.decoder.layers",
    block: BlockNames {
        attention_norm: "self_attn_layer_norm",
        qkv: JointNames::Apart(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        qk_norms: None,
        attention_output: "self_attn.out_proj",
        attention_output_norm: None,
        mlp_norm: "final_layer_norm",
        up: JointNames::Apart(&["fc1"]),
        down: "fc2",
        experts: None,
        mlp_output_norm: None,
    },
    seq2seq: None,
    norm: Some("model.decoder.final_layer_norm"),
    output: Some("lm_head"),
    classifier: SCORE,
    unused: &[],
    in_files: &[],
    transposed: false,
};

/// Row of a sequence's first token in the table of positions.
const OFFSET: usize = 2;

pub(super) struct Opt;

impl Family for Opt {
    fn model_type(&self) -> &'static str {
        "opt"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        let hidden_size = config.size("hidden_size")?;
        config.require(&[
            ("activation_function", "\"relu\""),
            ("do_layer_norm_before", "true"),
            ("_remove_final_layer_norm", "false"),
            ("layer_norm_elementwise_affine", "true"),
            ("word_embed_proj_dim", &hidden_size.to_string()),
            ("quantization_config", "null"),
        ])?;
        let query = config.size("num_attention_heads")?;
        let heads = Heads { query, key_value: query, dim: hidden_size / query };
        let max_positions = config.size("max_position_embeddings")?;
        let bias = config.flag_or("enable_bias", true)?;
        Ok(DecoderConfig {
            hidden_size,
            intermediate_size: config.size("ffn_dim")?,
            heads,
            vocab_size: config.size("vocab_size")?,
            patches: None,
            makes_words: true,
            tied_embeddings: config.flag_or("tie_word_embeddings", true)?,
            max_positions,
            embedding_scale: 1.0,
            output_scale: 1.0,
            seq2seq: None,
            positions: Positions::Learned { rows: max_positions + OFFSET, offset: OFFSET },
            layers: vec![LayerConfig::default(); config.size("num_hidden_layers")?],
            causal: true,
            norm_place: NormPlace::Before,
            norm: NormKind::Layer,
            norm_epsilon: 1e-5,
            attention_scale: 1.0 / (heads.dim as f32).sqrt(),
            attention_soft_cap: None,
            logit_soft_cap: None,
            mlp: MlpKind::Plain(PlainActivation::Relu),
            experts: None,
            biases: Biases { qkv: bias, attention_output: bias, mlp: bias },
            names: &NAMES,
        })
    }
}
