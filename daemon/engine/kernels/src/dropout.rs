//! Inverted dropout that stores no mask (Srivastava et al. 2014).

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Device, Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::device::on_cpu;
use crate::random;

/// `x` with some elements set to 0 and the others made larger, so that the mean stays.
pub fn dropout(x: Tensor<2>, dropout: Dropout) -> Tensor<2> {
    if !on_cpu(&x) {
        return reference(x, dropout);
    }
    Tensor::from_dispatch(<Dispatch as DropoutOp>::dropout(x.into_dispatch(), dropout))
}

/// The same by burn's own ops.
pub fn reference(x: Tensor<2>, dropout: Dropout) -> Tensor<2> {
    let mask = dropout.mask(x.dims(), &x.device());
    x * mask
}

#[backend_extension(Flex, Autodiff)]
pub trait DropoutOp: Backend {
    fn dropout(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self>;
}

impl DropoutOp for Flex {
    fn dropout(x: FlexTensor, dropout: Dropout) -> FlexTensor {
        let x = contiguous(x);
        tensor(dropout.apply(elements(&x)), shape2(&x))
    }
}

impl<C: CheckpointStrategy> DropoutOp for Autodiff<Flex, C> {
    fn dropout(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        let node = x.node();
        let output = Flex::dropout(x.into_primitive(), dropout);
        match DropoutBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(dropout, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct DropoutBackward;

impl Backward<Flex, 1> for DropoutBackward {
    type State = Dropout;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<Flex>(node.id, Flex::dropout(grad, ops.state));
        }
    }
}

/// Inverted dropout whose mask is a function of `seed` and of the element's index: nothing is stored for the backward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of elements set to 0, in `0..1`.
    pub probability: f32,
    pub seed: u64,
}

impl Dropout {
    /// What the element at `index` is multiplied with: 0 or `1 / (1 − probability)`.
    pub(crate) fn factor(self, index: usize) -> f32 {
        // The top 24 bits are uniform in 0..1.
        let uniform = (random::at(self.seed, index) >> 40) as f32 / (1u64 << 24) as f32;
        if uniform < self.probability { 0.0 } else { 1.0 / (1.0 - self.probability) }
    }

    /// All factors of a matrix.
    pub(crate) fn mask(self, shape: [usize; 2], device: &Device) -> Tensor<2> {
        let factors: Vec<f32> = (0..shape[0] * shape[1]).into_par_iter().map(|index| self.factor(index)).collect();
        Tensor::from_data(TensorData::new(factors, shape), device)
    }

    pub(crate) fn apply(self, x: &[f32]) -> Vec<f32> {
        let mut output = uninit(x.len());
        output.par_iter_mut().zip(x).enumerate().with_min_len(4096).for_each(|(index, (output, &x))| {
            *output = x * self.factor(index);
        });
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random, track};

    #[test]
    fn forward_and_gradient_equal_the_reference() {
        let how = Dropout { probability: 0.4, seed: 9 };
        let (x, upstream) = (random([13, 31], 1), random([13, 31], 2));
        let run = |op: fn(Tensor<2>, Dropout) -> Tensor<2>| {
            let x = track(&x);
            let output = op(x.clone(), how);
            let grads = (output.clone() * upstream.clone()).sum().backward();
            (output.inner(), x.grad(&grads).unwrap())
        };
        let (ours, theirs) = (run(dropout), run(reference));
        assert_close(ours.0, theirs.0, 0.0, "output");
        assert_close(ours.1, theirs.1, 0.0, "gradient");
    }

    #[test]
    fn dropout_drops_its_share_and_keeps_the_mean() {
        let dropout = Dropout { probability: 0.25, seed: 7 };
        let output = dropout.apply(&vec![1.0; 100_000]);
        let zeros = output.iter().filter(|&&v| v == 0.0).count() as f32 / 100_000.0;
        let mean = output.iter().sum::<f32>() / 100_000.0;
        // Five standard deviations of a binomial share.
        assert!((zeros - 0.25).abs() < 0.007, "{zeros}");
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        let other = Dropout { seed: 8, ..dropout }.apply(&vec![1.0; 100]);
        assert_ne!(other, output[..100]);
    }
}
