//! LoftQ (Li et al. 2023, arXiv 2310.08659): the pair starts as the best approximation of what quantisation loses, and the
//! weight is quantised again without that; each helps the other a few times.
//!
//! As PEFT's `loftq_init`, which for a scale that is not 1 leaves the pair too large; here `s·B₀·A₀` is what is lost.

use burn::tensor::Tensor;
use justtrain_kernels::singular::Effort;
use justtrain_worker_api::Problem;

use super::pissa::pair;
use super::start::{Start, without};
use crate::WeightFormat;
use crate::weights::hold;

/// As many as PiSSA's default.
const EFFORT: Effort = Effort::Iterations(16);

pub(super) fn start(
    weight: &Tensor<2>,
    rank: usize,
    scale: f32,
    format: WeightFormat,
    iterations: usize,
) -> Result<Start, Problem> {
    let (mut rest, mut taken) = (weight.clone(), None);
    for _ in 1..iterations {
        let [a, b] = lost(weight, rest, rank, scale, format)?;
        rest = without(weight.clone(), &a, &b, scale);
        taken = Some([a, b]);
    }
    let [a, b] = lost(weight, rest, rank, scale, format)?;
    Ok(Start { a, b, taken })
}

/// What is lost of the weight where it is held as `rest` rounded.
fn lost(
    weight: &Tensor<2>,
    rest: Tensor<2>,
    rank: usize,
    scale: f32,
    format: WeightFormat,
) -> Result<[Tensor<2>; 2], Problem> {
    let quantised = hold(rest, format)?.to_tensor(&weight.device());
    Ok(pair(weight.clone() - quantised, rank, scale, EFFORT))
}
