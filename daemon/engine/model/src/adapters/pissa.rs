//! PiSSA (Meng et al. 2024, arXiv 2404.02948): the pair starts as the largest singular values of the weight with their
//! vectors, `B₀ = U·√(S/s)` and `A₀ = √(S/s)·Vᵀ`, and the rest of the weight is frozen.

use burn::tensor::Tensor;
use justtrain_kernels::singular::{Effort, Truncated, truncated};

use super::start::Start;

pub(super) fn start(weight: &Tensor<2>, rank: usize, scale: f32, effort: Effort) -> Start {
    let [a, b] = pair(weight.clone(), rank, scale, effort);
    Start { taken: Some([a.clone(), b.clone()]), a, b }
}

/// A and B of which `s·B·A` is the best approximation of the matrix.
pub(super) fn pair(matrix: Tensor<2>, rank: usize, scale: f32, effort: Effort) -> [Tensor<2>; 2] {
    let device = matrix.device();
    let Truncated { left, values, right } = truncated(matrix, rank, effort);
    let roots: Vec<f32> = values.iter().map(|value| (value / scale).sqrt()).collect();
    let roots = Tensor::<1>::from_floats(roots.as_slice(), &device);
    [right * roots.clone().unsqueeze_dim(1), left * roots.unsqueeze_dim(0)]
}
