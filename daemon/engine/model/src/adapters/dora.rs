//! DoRA (Liu et al. 2024, arXiv 2402.09353): a weight's direction by LoRA, and its magnitude apart, a trained number for
//! each output: `m ⊙ (W + s·B·A) / ‖W + s·B·A‖` by rows. The norm is a constant in the backward (section 4.3).
//!
//! Neither that matrix nor `W` in `f32` is made: of row i the squared norm is `‖wᵢ‖² + 2s·bᵢ·(A·wᵢ) + s²·bᵢ·(A·Aᵀ)·bᵢ`,
//! for which the base matrix is multiplied with A's rows as if these were so many more tokens. PEFT lets dropout work on
//! the base's share of a changed magnitude as well; here it works on the pair alone.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use justtrain_kernels::{Weight, linear};

use crate::Decoder;

/// Beside a low-rank pair.
#[derive(Debug, Clone)]
pub struct Dora {
    /// `[outputs]`.
    pub magnitude: Tensor<1>,
    /// Of each row of the frozen weight the sum of its squares.
    squares: Tensor<1>,
    /// 1 / ‖W + s·B·A‖, until a factor may have changed.
    inverse_norms: Arc<OnceLock<Tensor<1>>>,
}

impl Dora {
    pub(super) fn new(weight: &Weight, magnitude: Tensor<1>) -> Self {
        Self { squares: weight.row_squares(&magnitude.device()), magnitude, inverse_norms: Arc::default() }
    }

    /// To be called before a factor changes.
    pub(crate) fn forget_norms(&mut self) {
        self.inverse_norms = Arc::default();
    }

    /// What each output of `W·x + s·B·A·x` is multiplied by.
    pub(crate) fn factors(&self, weight: &Weight, a: &Tensor<2>, b: &Tensor<2>, scale: f32) -> Tensor<1> {
        let inverse = self.inverse_norms.get_or_init(|| {
            // Rows that are zero stay zero.
            norms(&self.squares, weight, a, b, scale).clamp_min(f32::MIN_POSITIVE).recip()
        });
        self.magnitude.clone() * inverse.clone()
    }
}

/// `‖W + s·B·A‖` by rows, without gradients.
fn norms(squares: &Tensor<1>, weight: &Weight, a: &Tensor<2>, b: &Tensor<2>, scale: f32) -> Tensor<1> {
    let (a, b) = (a.clone().inner(), b.clone().inner());
    let crossed = linear(a.clone(), &weight.clone().inner(), None).transpose();
    let gram = a.clone().matmul(a.transpose());
    let change = b.clone() * (crossed * (2.0 * scale) + b.matmul(gram) * (scale * scale));
    (squares.clone() + change.sum_dim(1).squeeze_dim(1)).clamp_min(0.0).sqrt()
}

/// Gives every adapter of the decoder the magnitudes of its weight as it is, so that nothing changes.
pub(super) fn attach_magnitudes(decoder: &mut Decoder) {
    for projection in decoder.projections_mut() {
        let Some(lora) = &mut projection.lora else { continue };
        let squares = projection.weight.row_squares(&lora.a.device());
        let magnitude = norms(&squares, &projection.weight, &lora.a, &lora.b, lora.scale);
        lora.dora = Some(Dora { magnitude, squares, inverse_norms: Arc::default() });
    }
}
