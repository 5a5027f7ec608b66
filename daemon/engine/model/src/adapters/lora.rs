//! LoRA (Hu et al. 2021, arXiv 2106.09685), initialised as PEFT does.

use burn::tensor::{Tensor, TensorData};
use justtrain_worker_api::{Problem, ProblemCode};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Decoder;
use crate::layers::Lora;

#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    pub rank: usize,
    /// The adapter's output is scaled by `alpha / rank`.
    pub alpha: f32,
    /// Share of the adapter's inputs set to 0 while training.
    pub dropout: f32,
    pub targets: LoraTargets,
}

/// Which linear layers get an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraTargets {
    All,
    /// Last parts of module names, such as `q_proj`.
    Named(Vec<String>),
}

/// Puts a fresh adapter on every targeted layer: A uniform in ±1/√inputs (`kaiming_uniform_(a=√5)`), B zero, so that
/// the model's output is unchanged. `InvalidValue` where a target matches no layer.
pub fn attach_lora(decoder: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<(), Problem> {
    if let LoraTargets::Named(names) = &config.targets {
        check_targets(decoder, names)?;
    }
    let device = decoder.device();
    let scale = config.alpha / config.rank as f32;
    for (index, projection) in (0u64..).zip(decoder.projections_mut()) {
        let last = projection.name.rsplit('.').next().unwrap_or_default();
        let targeted = match &config.targets {
            LoraTargets::All => true,
            LoraTargets::Named(names) => names.iter().any(|name| name == last),
        };
        if !targeted {
            continue;
        }
        let [outputs, inputs] = projection.shape();
        let bound = 1.0 / (inputs as f32).sqrt();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let a: Vec<f32> = (0..config.rank * inputs).map(|_| rng.random_range(-bound..bound)).collect();
        projection.lora = Some(Lora {
            a: Tensor::from_data(TensorData::new(a, [config.rank, inputs]), &device),
            b: Tensor::zeros([outputs, config.rank], &device),
            scale,
            dropout: config.dropout,
            index,
        });
    }
    Ok(())
}

/// Takes the adapters of all other blocks away. `InvalidValue` where the model has no such block.
pub fn keep_layers(decoder: &mut Decoder, layers: &[usize]) -> Result<(), Problem> {
    let config = decoder.config().clone();
    config.check_layers(layers)?;
    for projection in decoder.projections_mut() {
        if config.place_in_block(&projection.name).is_none_or(|(layer, _)| !layers.contains(&layer)) {
            projection.lora = None;
        }
    }
    Ok(())
}

fn check_targets(decoder: &Decoder, names: &[String]) -> Result<(), Problem> {
    let mut known: Vec<&str> = Vec::new();
    for projection in decoder.projections() {
        let last = projection.name.rsplit('.').next().unwrap_or_default();
        if !known.contains(&last) {
            known.push(last);
        }
    }
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(unknown) => Err(Problem::error(
            ProblemCode::InvalidValue,
            "this model has no such linear layer",
            "该模型没有这个线性层",
        )
        .key("lora_target")
        .found(unknown)
        .expected(format!("all, or some of {}", known.join(", ")))
        .fix("correct the name, or write lora_target: all", "请更正名称，或写 lora_target: all")),
    }
}
