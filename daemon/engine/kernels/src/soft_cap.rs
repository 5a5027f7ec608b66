//! Soft caps by burn's own ops, for the references of the ops that have one.

use burn::tensor::Tensor;

/// `cap · tanh(x / cap)`, or `x` without a cap.
pub(crate) fn soft_capped<const D: usize>(x: Tensor<D>, cap: Option<f32>) -> Tensor<D> {
    match cap {
        None => x,
        Some(cap) => (x / cap).tanh() * cap,
    }
}
