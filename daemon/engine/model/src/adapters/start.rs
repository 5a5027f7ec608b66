//! Pairs that do not start at zero. So that the model is what it was, what they make at the start is taken out of the frozen
//! weight.
//!
//! On the disk such an adapter is a plain one of twice the rank, `[A; A₀]` and `[B, −B₀]` (PiSSA's appendix C, PEFT's
//! `subtract_mutated_init`): what training changed, on the model as it is. The header says that it can be taken apart
//! again, which a run that goes on and whoever uses the adapter do: a weight that something was taken out of before it was
//! rounded is another one than the rounded whole.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use justtrain_kernels::singular::Effort;
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write};
use justtrain_worker_api::{Problem, ProblemCode};

use super::{LoraConfig, loftq, olora, pissa};
use crate::layers::{Lora, Projection};
use crate::weights::{hold, original};
use crate::{Decoder, WeightFormat};

/// In the folder of an adapter: what was taken out of the weights, where that is not what the pairs started with.
const TAKEN: &str = "taken_out.safetensors";

/// Kinds of starts: what a pair starts with is taken out of the weight, or nothing, or what [`TAKEN`] says.
const ITSELF: &str = "taken_out";
const LESS: &str = "beside";

/// How the pairs of a fresh adapter start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraStart {
    Pissa(Effort),
    /// Of quantised weights.
    Loftq {
        iterations: usize,
    },
}

/// What a pair was before the first step.
#[derive(Debug, Clone)]
pub struct Start {
    /// As [`Lora::a`] and [`Lora::b`].
    pub a: Tensor<2>,
    pub b: Tensor<2>,
    /// A and B of what was taken out of the weight before it was rounded.
    pub(super) taken: Option<[Tensor<2>; 2]>,
}

impl Start {
    /// Under which an adapter notes what its pairs have taken out of the weights.
    pub(super) fn kind(&self) -> &'static str {
        let itself = self.taken.as_ref().is_some_and(|[a, _]| values(a) == values(&self.a));
        if itself { ITSELF } else { LESS }
    }
}

impl LoraStart {
    /// Starts the pairs of a fresh adapter and changes the frozen weights by as much. `checkpoint` is the decoder's.
    pub fn apply(self, decoder: &mut Decoder, checkpoint: &Checkpoint) -> Result<(), Problem> {
        let (format, device, names) = (decoder.formats().linear, decoder.device(), decoder.config().names);
        for projection in decoder.projections_mut().filter(|projection| projection.lora.is_some()) {
            let weight = original(checkpoint, names, projection, &device)?;
            let Some(lora) = &mut projection.lora else { continue };
            let rank = lora.a.dims()[0];
            if rank > weight.dims().into_iter().min().unwrap_or(0) {
                return Err(too_high(&projection.name, rank, weight.dims()));
            }
            let start = match self {
                Self::Pissa(effort) => pissa::start(&weight, rank, lora.scale, effort),
                Self::Loftq { iterations } => loftq::start(&weight, rank, lora.scale, format, iterations)?,
            };
            (lora.a, lora.b) = (start.a.clone(), start.b.clone());
            lora.start = Some(start);
            projection.take_out(weight, format)?;
        }
        Ok(())
    }
}

impl Projection {
    /// `weight` is the original one; what is frozen becomes that without what the pair has taken out of it.
    fn take_out(&mut self, weight: Tensor<2>, format: WeightFormat) -> Result<(), Problem> {
        let Some(Lora { start: Some(Start { taken: Some([a, b]), .. }), scale, .. }) = &self.lora else {
            return Ok(());
        };
        self.weight = hold(without(weight, a, b, *scale), format)?.with_products(self.weight.products);
        Ok(())
    }
}

/// `W − s·B·A`.
pub(super) fn without(weight: Tensor<2>, a: &Tensor<2>, b: &Tensor<2>, scale: f32) -> Tensor<2> {
    weight - b.clone().matmul(a.clone()) * scale
}

/// Makes plain pairs of those that did not start at zero, which fit the original weights, and returns their configuration.
pub(super) fn join(decoder: &mut Decoder, config: &LoraConfig) -> LoraConfig {
    for projection in decoder.projections_mut() {
        let Some(Lora { a, b, start, .. }) = &mut projection.lora else { continue };
        let Some(start) = start.take() else { return config.clone() };
        *a = Tensor::cat(vec![a.clone(), start.a], 0);
        *b = Tensor::cat(vec![b.clone(), -start.b], 1);
    }
    olora::of_joined(decoder, config)
}

/// Writes what was taken out of the weights, where the joined pairs do not tell.
pub(super) fn save_taken(decoder: &Decoder, folder: &Path) -> Result<(), Problem> {
    let mut tensors = BTreeMap::new();
    for projection in decoder.projections() {
        let Some(Start { a, taken: Some(taken), .. }) = projection.lora.as_ref().and_then(|lora| lora.start.as_ref())
        else {
            continue;
        };
        if values(a) != values(&taken[0]) {
            for (part, tensor) in ["A", "B"].iter().zip(taken) {
                tensors.insert(format!("{}.{part}", projection.name), tensor.clone());
            }
        }
    }
    if tensors.is_empty() {
        return Ok(());
    }
    let entry = |(name, tensor): (&String, &Tensor<2>)| Entry {
        name: name.clone(),
        shape: tensor.dims().to_vec(),
        dtype: Dtype::F32,
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    write(&folder.join(TAKEN), &entries, &BTreeMap::new(), |entry| Ok(values(&tensors[&entry.name]))).map(drop)
}

/// Takes the decoder's plain pairs apart, which [`join`] made of those of a kind.
pub(crate) fn take_apart(
    decoder: &mut Decoder,
    checkpoint: &Checkpoint,
    kind: &str,
    folder: &Path,
) -> Result<(), Problem> {
    let (format, device, names) = (decoder.formats().linear, decoder.device(), decoder.config().names);
    let path = folder.join(TAKEN);
    let taken_out = if path.exists() { Some(SafetensorsFile::open(&path)?) } else { None };
    for projection in decoder.projections_mut() {
        let Some(lora) = &mut projection.lora else { continue };
        let rank = lora.a.dims()[0] / 2;
        let part = |tensor: &Tensor<2>, dim: usize, from: usize| {
            Tensor::<2>::from_data(tensor.clone().narrow(dim, from, rank).into_data(), &device)
        };
        let (a, b) = (part(&lora.a, 0, rank), -part(&lora.b, 1, rank));
        (lora.a, lora.b) = (part(&lora.a, 0, 0), part(&lora.b, 1, 0));
        let saved = |file: &SafetensorsFile| {
            let read = |part: &str| {
                let name = format!("{}.{part}", projection.name);
                let shape = file.shape(&name).unwrap_or_default().to_vec();
                Ok::<_, Problem>(Tensor::<2>::from_data(TensorData::new(file.read_f32(&name)?, shape), &device))
            };
            Ok::<_, Problem>([read("A")?, read("B")?])
        };
        let taken = match &taken_out {
            Some(file) => Some(saved(file)?),
            None if kind == ITSELF => Some([a.clone(), b.clone()]),
            None => None,
        };
        lora.start = Some(Start { a, b, taken });
        let weight = original(checkpoint, names, projection, &device)?;
        projection.take_out(weight, format)?;
    }
    Ok(())
}

fn values(tensor: &Tensor<2>) -> Vec<f32> {
    tensor.clone().into_data().try_into_vec().expect("adapters are f32")
}

fn too_high(layer: &str, rank: usize, [rows, cols]: [usize; 2]) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        "a layer has no singular vectors for so high a rank",
        "该层没有这么多奇异向量，秩过高",
    )
    .key("lora_rank")
    .found(rank)
    .expected(format!("at most {} for {layer}", rows.min(cols)))
    .fix(
        "lower lora_rank, or give this layer a rank of its own in rank_pattern",
        "降低 lora_rank，或用 rank_pattern 单独设置该层的秩",
    )
}
