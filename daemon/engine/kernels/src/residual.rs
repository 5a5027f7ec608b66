//! The sum of two paths through a block.
//!
//! burn's own sum counts as cheap enough to be made again in the backward, and so keeps both of its sides from the forward
//! to the backward; what follows a residual needs the sum alone.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{contiguous, elements};
use crate::device::on_cpu;
use crate::simd;

/// `x + path`; both are `[tokens, features]`.
pub fn residual(x: Tensor<2>, path: Tensor<2>) -> Tensor<2> {
    assert_eq!(x.dims(), path.dims());
    if !on_cpu(&x) {
        return reference(x, path);
    }
    Tensor::from_dispatch(<Dispatch as ResidualOp>::residual(x.into_dispatch(), path.into_dispatch()))
}

/// The same by burn's own ops.
pub fn reference(x: Tensor<2>, path: Tensor<2>) -> Tensor<2> {
    x + path
}

#[backend_extension(Flex, Autodiff)]
pub trait ResidualOp: Backend {
    fn residual(x: FloatTensor<Self>, path: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl ResidualOp for Flex {
    fn residual(x: FlexTensor, path: FlexTensor) -> FlexTensor {
        // In place where nothing else holds the path, as is usual.
        let (x, mut sum) = (contiguous(x), contiguous(path));
        let chunks = sum.storage_mut::<f32>().par_chunks_mut(CHUNK).zip(elements(&x).par_chunks(CHUNK));
        chunks.for_each(|(sum, x)| simd::add(sum, x));
        sum
    }
}

/// Elements that one task handles.
const CHUNK: usize = 16 * 1024;

impl<C: CheckpointStrategy> ResidualOp for Autodiff<Flex, C> {
    fn residual(x: FloatTensor<Self>, path: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node(), path.node()];
        let output = Flex::residual(x.into_primitive(), path.into_primitive());
        match Residual.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Residual;

impl Backward<Flex, 2> for Residual {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        for node in ops.parents.into_iter().flatten() {
            grads.register::<Flex>(node.id, grad.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::testing::at_every_level;
    use crate::testing::{assert_close, random, track};

    #[test]
    fn the_sum_and_both_gradients_are_the_references() {
        at_every_level(|_| {
            for shape in [[1, 1], [3, 17], [40, 500]] {
                let (x, path, upstream) = (random(shape, 1), random(shape, 2), random(shape, 3));
                let run = |op: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
                    let (x, path) = (track(&x), track(&path));
                    let sum = op(x.clone(), path.clone());
                    let grads = (sum.clone() * upstream.clone()).sum().backward();
                    [sum.inner(), x.grad(&grads).unwrap(), path.grad(&grads).unwrap()]
                };
                for (ours, theirs) in run(residual).into_iter().zip(run(reference)) {
                    assert_close(ours, theirs, 0.0, "residual");
                }
            }
        });
    }

    #[test]
    fn what_else_holds_a_side_still_has_it() {
        let (x, path) = (random([5, 7], 1), random([5, 7], 2));
        let before = (x.to_data(), path.to_data());
        let _ = residual(x.clone(), path.clone());
        assert_eq!((x.to_data(), path.to_data()), before);
    }
}
