//! LoRA (Hu et al. 2021, arXiv 2106.09685), initialised as PEFT does; its update scaled by `α/r`, or by `α/√r`: rsLoRA
//! (Kalajdzievski 2023, arXiv 2312.03732), where a higher rank does not make it smaller.

use burn::tensor::{Device, Tensor, TensorData};
use justtrain_worker_api::{Problem, ProblemCode};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use regex::Regex;

use super::dora::attach_magnitudes;
use super::in_full::{self, is_end};
use super::{Patterns, TrainedBias, tables};
use crate::Decoder;
use crate::layers::Lora;

#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f64,
    /// Share of the adapter's inputs set to 0 while training.
    pub dropout: f64,
    pub targets: LoraTargets,
    /// Numbers of the blocks that get adapters; `None` for all (PEFT's `layers_to_transform`).
    pub layers: Option<Vec<usize>>,
    /// Scale by `alpha / √rank` in place of `alpha / rank`.
    pub rslora: bool,
    /// DoRA: magnitudes are trained apart.
    pub dora: bool,
    /// Modules that are trained in full beside the pairs: names, or their last parts. They get no pair.
    pub modules_to_save: Vec<String>,
    pub bias: TrainedBias,
    /// Ranks and alphas of single layers.
    pub rank_pattern: Patterns<usize>,
    pub alpha_pattern: Patterns<f64>,
}

impl Default for LoraConfig {
    /// PEFT's own.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            targets: LoraTargets::All,
            layers: None,
            rslora: false,
            dora: false,
            modules_to_save: Vec::new(),
            bias: TrainedBias::None,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
        }
    }
}

/// Which layers get an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraTargets {
    /// The linear layers inside the blocks.
    All,
    /// Module names, or their last parts, such as `q_proj`.
    Named(Vec<String>),
    /// A regular expression of whole module names.
    Matching(String),
}

impl LoraConfig {
    /// Whether the layer of this name gets an adapter.
    pub fn targets(&self, layer: &str) -> bool {
        if !self.in_layers(layer) || self.modules_to_save.iter().any(|name| is_end(name, layer)) {
            return false;
        }
        match &self.targets {
            LoraTargets::All => true,
            LoraTargets::Named(names) => names.iter().any(|name| is_end(name, layer)),
            LoraTargets::Matching(pattern) => {
                Regex::new(&format!("^({pattern})$")).is_ok_and(|regex| regex.is_match(layer))
            }
        }
    }

    /// Whether the layer of this name is in a block that gets adapters.
    pub(super) fn in_layers(&self, layer: &str) -> bool {
        let number = || layer.split('.').find_map(|part| part.parse().ok());
        self.layers.as_ref().is_none_or(|layers| number().is_some_and(|number| layers.contains(&number)))
    }

    pub fn rank_of(&self, layer: &str) -> usize {
        self.rank_pattern.of(layer).unwrap_or(self.rank)
    }

    /// What the layer's `B·A` is multiplied by.
    pub fn scale_of(&self, layer: &str) -> f32 {
        self.scale(self.alpha_pattern.of(layer).unwrap_or(self.alpha), self.rank_of(layer))
    }

    pub(super) fn scale(&self, alpha: f64, rank: usize) -> f32 {
        let rank = rank as f64;
        (alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// Puts a fresh adapter on every targeted layer: A uniform in ±1/√inputs (`kaiming_uniform_(a=√5)`), B zero, so that
/// the model's output is unchanged. `InvalidValue` where a target, a block's number or a pattern matches no layer.
pub fn attach_lora(decoder: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<(), Problem> {
    if let LoraTargets::Named(names) = &config.targets {
        check_targets(decoder, names)?;
    }
    if let Some(layers) = &config.layers {
        decoder.config().check_layers(layers)?;
    }
    check_patterns(decoder, config)?;
    let device = decoder.device();
    for (index, projection) in (0u64..).zip(decoder.projections_mut()) {
        if !config.targets(&projection.name) {
            continue;
        }
        let [outputs, inputs] = projection.shape();
        let rank = config.rank_of(&projection.name);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let a = kaiming(&mut rng, rank, inputs, &device);
        let (b, scale) = (Tensor::zeros([outputs, rank], &device), config.scale_of(&projection.name));
        projection.lora = Some(Lora::new(a, b, scale, config.dropout as f32, index));
    }
    if config.dora {
        attach_magnitudes(decoder);
    }
    tables::attach(decoder, config, seed)?;
    in_full::mark(decoder, config)
}

/// `[rank, inputs]`, uniform in ±1/√inputs.
pub(super) fn kaiming(rng: &mut ChaCha8Rng, rank: usize, inputs: usize, device: &Device) -> Tensor<2> {
    let bound = 1.0 / (inputs as f32).sqrt();
    let numbers: Vec<f32> = (0..rank * inputs).map(|_| rng.random_range(-bound..bound)).collect();
    Tensor::from_data(TensorData::new(numbers, [rank, inputs]), device)
}

/// Of a module's name: `q_proj`.
pub(super) fn last_part(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or_default()
}

fn check_targets(decoder: &Decoder, names: &[String]) -> Result<(), Problem> {
    let mut known: Vec<&str> = Vec::new();
    let tables = tables::modules(decoder);
    for module in decoder.projections().map(|projection| projection.name.as_str()).chain(tables) {
        let last = last_part(module);
        if !known.contains(&last) {
            known.push(last);
        }
    }
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(unknown) => Err(Problem::error(
            ProblemCode::InvalidValue,
            "this model has no such layer that can have a LoRA pair",
            "该模型没有这个可以加 LoRA 的层",
        )
        .key("lora_target")
        .found(unknown)
        .expected(format!("all, or some of {}", known.join(", ")))
        .fix("correct the name, or write lora_target: all", "请更正名称，或写 lora_target: all")),
    }
}

/// A rank for no layer at all is a pattern with a mistake in it.
fn check_patterns(decoder: &Decoder, config: &LoraConfig) -> Result<(), Problem> {
    let layers = decoder.projections().map(|projection| projection.name.as_str()).filter(|name| config.targets(name));
    let tables = tables::modules(decoder).into_iter().filter(|module| config.targets_table(module));
    let layers: Vec<&str> = layers.chain(tables).collect();
    let unused = [
        ("rank_pattern", config.rank_pattern.unused(&layers)),
        ("alpha_pattern", config.alpha_pattern.unused(&layers)),
    ];
    let Some((key, pattern)) = unused.into_iter().find_map(|(key, pattern)| Some((key, pattern?))) else {
        return Ok(());
    };
    Err(Problem::error(
        ProblemCode::InvalidValue,
        "no layer with a LoRA pair has a name that ends so",
        "没有任何带 LoRA 的层以此名结尾",
    )
    .key(format!("{key}.{pattern}"))
    .expected(format!("the end of a name such as {}", layers.last().copied().unwrap_or_default()))
    .fix("correct the pattern, or remove it", "请修改这个模式，或将其删除"))
}
