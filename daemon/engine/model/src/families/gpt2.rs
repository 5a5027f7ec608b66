//! `gpt2`: GPT-2 and DistilGPT2. Learned positions, LayerNorm, and matrices stored `[inputs, outputs]`.

use justtrain_kernels::Heads;
use justtrain_worker_api::{Problem, ProblemCode};

use super::Family;
use super::reader::ConfigReader;
use crate::config::{Biases, DecoderConfig, LayerConfig, MlpKind, NormKind, NormPlace, PlainActivation, Positions};
use crate::names::{BlockNames, JointNames, SCORE, WeightNames};

const NAMES: WeightNames = WeightNames {
    embeddings: "transformer.wte",
    positions: Some("transformer.wpe"),
    token_types: None,
    embedding_norm: None,
    blocks: "transformer.h",
    block: BlockNames {
        attention_norm: "ln_1",
        qkv: JointNames::Fused("attn.c_attn"),
        qk_norms: None,
        attention_output: "attn.c_proj",
        attention_output_norm: None,
        mlp_norm: "ln_2",
        up: JointNames::Apart(&["mlp.c_fc"]),
        down: "mlp.c_proj",
        experts: None,
        mlp_output_norm: None,
    },
    seq2seq: None,
    norm: Some("transformer.ln_f"),
    output: Some("lm_head"),
    classifier: SCORE,
    unused: &[],
    in_files: &[],
    transposed: true,
};

pub(super) struct Gpt2;

impl Family for Gpt2 {
    fn model_type(&self) -> &'static str {
        "gpt2"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        config.require(&[
            ("scale_attn_weights", "true"),
            ("scale_attn_by_inverse_layer_idx", "false"),
            ("add_cross_attention", "false"),
            ("quantization_config", "null"),
        ])?;
        let activation = &config.values["activation_function"];
        // The same function by two names.
        if !activation.is_null() && activation != "gelu_new" && activation != "gelu_pytorch_tanh" {
            return Err(config.wrong(ProblemCode::InvalidValue, "activation_function", activation, "\"gelu_new\""));
        }
        let (hidden_size, query) = (config.size("n_embd")?, config.size("n_head")?);
        let heads = Heads { query, key_value: query, dim: hidden_size / query };
        let rows = config.size("n_positions")?;
        Ok(DecoderConfig {
            hidden_size,
            intermediate_size: config.size_or("n_inner", 4 * hidden_size)?,
            heads,
            vocab_size: config.size("vocab_size")?,
            patches: None,
            makes_words: true,
            tied_embeddings: config.flag_or("tie_word_embeddings", true)?,
            max_positions: rows,
            embedding_scale: 1.0,
            output_scale: 1.0,
            seq2seq: None,
            positions: Positions::Learned { rows, offset: 0 },
            layers: vec![LayerConfig::default(); config.size("n_layer")?],
            causal: true,
            norm_place: NormPlace::Before,
            norm: NormKind::Layer,
            norm_epsilon: config.number("layer_norm_epsilon")? as f32,
            attention_scale: 1.0 / (heads.dim as f32).sqrt(),
            attention_soft_cap: None,
            logit_soft_cap: None,
            mlp: MlpKind::Plain(PlainActivation::GeluTanh),
            experts: None,
            biases: Biases { qkv: true, attention_output: true, mlp: true },
            names: &NAMES,
        })
    }
}
