//! Root-mean-square normalisation: `x / √(mean(x²) + ε) · weight`, row by row (Zhang & Sennrich 2019, arXiv 1910.07467).

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::device::on_cpu;
use crate::simd::{dot, mul_add, simd_fn};

/// Normalises each row of `x` `[tokens, features]`; `weight` is `[features]`.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f32) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[0]);
    if !on_cpu(&x) {
        return reference(x, weight, epsilon);
    }
    Tensor::from_dispatch(<Dispatch as RmsNormOp>::rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon))
}

/// The same by burn's own ops.
pub fn reference(x: Tensor<2>, weight: Tensor<1>, epsilon: f32) -> Tensor<2> {
    let mean_square = x.clone().powf_scalar(2.0).mean_dim(1);
    x / (mean_square + epsilon).sqrt() * weight.unsqueeze()
}

#[backend_extension(Flex, Autodiff)]
pub trait RmsNormOp: Backend {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
}

impl RmsNormOp for Flex {
    fn rms_norm(x: FlexTensor, weight: FlexTensor, epsilon: f32) -> FlexTensor {
        forward(&contiguous(x), &contiguous(weight), epsilon).0
    }
}

impl<C: CheckpointStrategy> RmsNormOp for Autodiff<Flex, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let again = Again { x: x.id(), weight: contiguous(weight.primitive().clone()), epsilon };
        let parents = [&x].into_iter().chain(Some(&weight).filter(|weight| weight.is_tracked()));
        let prep = RmsNorm.prepare::<C>(nodes).memory_bound().retro_forward(again.clone()).parents(parents);
        let (output, inverse_rms) = forward(&contiguous(x.primitive().clone()), &again.weight, epsilon);
        match prep.stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = Saved { x: prep.checkpoint(&x), weight: again.weight, inverse_rms };
                prep.finish(saved, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

/// Makes the output a second time, so that nothing keeps it from the forward to the backward.
#[derive(Debug, Clone)]
struct Again {
    x: NodeId,
    weight: FlexTensor,
    epsilon: f32,
}

impl RetroForward for Again {
    fn forward(&self, states: &mut BackwardStates, output: NodeId) {
        let x = contiguous(states.get_state::<FlexTensor>(&self.x));
        states.save(output, forward(&x, &self.weight, self.epsilon).0);
    }
}

#[derive(Debug)]
struct RmsNorm;

#[derive(Debug, Clone)]
struct Saved {
    x: NodeId,
    weight: FlexTensor,
    /// `1 / √(mean(x²) + ε)` of each row.
    inverse_rms: Vec<f32>,
}

impl Backward<Flex, 2> for RmsNorm {
    type State = Saved;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let x = contiguous(checkpointer.retrieve_node_output(ops.state.x));
        let Saved { weight, inverse_rms, .. } = ops.state;
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, weight_grad(&x, &inverse_rms, &grad));
        }
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, input_grad(&x, &weight, &inverse_rms, &grad));
        }
    }
}

fn forward(x: &FlexTensor, weight: &FlexTensor, epsilon: f32) -> (FlexTensor, Vec<f32>) {
    let [rows, cols] = shape2(x);
    let mut output = uninit(rows * cols);
    let mut inverse_rms = uninit(rows);
    output.par_chunks_mut(cols).zip(inverse_rms.par_iter_mut()).zip(elements(x).par_chunks(cols)).for_each(
        |((output, inverse), x)| {
            *inverse = 1.0 / (dot(x, x) / cols as f32 + epsilon).sqrt();
            normalise_row(x, elements(weight), *inverse, output);
        },
    );
    (tensor(output, [rows, cols]), inverse_rms)
}

/// With `x̂ = x·r`: `dx = r · (g·w − x̂ · mean(g·w·x̂))`.
fn input_grad(x: &FlexTensor, weight: &FlexTensor, inverse_rms: &[f32], grad: &FlexTensor) -> FlexTensor {
    let [rows, cols] = shape2(grad);
    let weight = elements(weight);
    let mut output = uninit(rows * cols);
    output
        .par_chunks_mut(cols)
        .zip(elements(x).par_chunks(cols).zip(elements(grad).par_chunks(cols)))
        .zip(inverse_rms.par_iter())
        .for_each(|((output, (x, grad)), &inverse)| input_grad_row(x, weight, grad, inverse, output));
    tensor(output, [rows, cols])
}

fn weight_grad(x: &FlexTensor, inverse_rms: &[f32], grad: &FlexTensor) -> FlexTensor {
    let [_, cols] = shape2(grad);
    let mut output = vec![0.0; cols];
    let rows = elements(x).chunks(cols).zip(elements(grad).chunks(cols)).zip(inverse_rms);
    for ((x, grad), &inverse) in rows {
        weight_grad_row(x, grad, inverse, &mut output);
    }
    tensor(output, [cols])
}

simd_fn! {
    fn normalise_row(x: &[f32], weight: &[f32], inverse: f32, output: &mut [f32]) {
        let _ = FMA;
        for ((output, &x), &weight) in output.iter_mut().zip(x).zip(weight) {
            *output = x * inverse * weight;
        }
    }
}

simd_fn! {
    fn input_grad_row(x: &[f32], weight: &[f32], grad: &[f32], inverse: f32, output: &mut [f32]) {
        for ((output, &grad), &weight) in output.iter_mut().zip(grad).zip(weight) {
            *output = grad * weight;
        }
        let shared = dot(output, x) * inverse * inverse / x.len() as f32;
        for (output, &x) in output.iter_mut().zip(x) {
            *output = mul_add::<FMA>(-shared, x, *output) * inverse;
        }
    }
}

simd_fn! {
    fn weight_grad_row(x: &[f32], grad: &[f32], inverse: f32, output: &mut [f32]) {
        for ((output, &x), &grad) in output.iter_mut().zip(x).zip(grad) {
            *output = mul_add::<FMA>(grad * inverse, x, *output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random, track};

    #[test]
    fn forward_and_gradients_equal_the_reference() {
        crate::simd::testing::at_every_level(|level| {
            for [rows, cols] in [[2, 3], [5, 33], [40, 576]] {
                let (x, weight, scale) = (random([rows, cols], 1), random([cols], 2), random([rows, cols], 3));
                let run = |op: fn(Tensor<2>, Tensor<1>, f32) -> Tensor<2>| {
                    let (x, weight) = (track(&x), track(&weight));
                    let output = op(x.clone(), weight.clone(), 1e-5);
                    let grads = (output.clone() * scale.clone()).sum().backward();
                    (output.inner(), x.grad(&grads).unwrap(), weight.grad(&grads).unwrap())
                };
                let (ours, theirs) = (run(rms_norm), run(reference));
                let what = format!("{level:?} {rows}x{cols}");
                assert_close(ours.0, theirs.0, 1e-5, &what);
                assert_close(ours.1, theirs.1, 2e-5, &what);
                assert_close(ours.2, theirs.2, 2e-5, &what);
            }
        });
    }
}
