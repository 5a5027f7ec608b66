//! A linear layer with an optional low-rank adapter: `y = x·Wᵀ + s·(dropout(x)·Aᵀ)·Bᵀ` (LoRA, Hu et al. 2021, arXiv
//! 2106.09685).
//!
//! The adapter stays factored: no dense `W + s·B·A` is ever made, and no gradient of a frozen `W` is computed.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::Weight;
use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::matmul::{View, Write, matmul};
use crate::packed::{self, Packed};

/// The two factors of an adapter and how they are applied.
#[derive(Debug, Clone)]
pub struct Factors {
    /// `[rank, inputs]`, as PEFT stores `lora_A.weight`.
    pub a: Tensor<2>,
    /// `[outputs, rank]`, as PEFT stores `lora_B.weight`.
    pub b: Tensor<2>,
    pub scale: f32,
    pub dropout: Option<Dropout>,
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
    fn factor(self, index: usize) -> f32 {
        // SplitMix64 (Steele et al. 2014) of the index; its top 24 bits are uniform in 0..1.
        let mut z = self.seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let uniform = (z >> 40) as f32 / (1u64 << 24) as f32;
        if uniform < self.probability { 0.0 } else { 1.0 / (1.0 - self.probability) }
    }

    fn apply(self, x: &[f32]) -> Vec<f32> {
        let mut output = uninit(x.len());
        output.par_iter_mut().zip(x).enumerate().with_min_len(4096).for_each(|(index, (output, &x))| {
            *output = x * self.factor(index);
        });
        output
    }
}

/// `x` is `[tokens, inputs]`, `weight` `[outputs, inputs]`; the result is `[tokens, outputs]`.
pub fn linear(x: Tensor<2>, weight: &Weight, adapter: Option<Factors>) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[1]);
    let x = x.into_dispatch();
    let adapter = adapter.map(|Factors { a, b, scale, dropout }| {
        assert_eq!(a.dims()[0], b.dims()[1], "both factors have the adapter's rank");
        (a.into_dispatch(), b.into_dispatch(), Applied { scale, dropout })
    });
    Tensor::from_dispatch(match (weight, adapter) {
        (Weight::Dense(weight), None) => <Dispatch as LinearOp>::linear(x, weight.clone().into_dispatch()),
        (Weight::Dense(weight), Some((a, b, applied))) => {
            <Dispatch as LinearOp>::adapted_linear(x, weight.clone().into_dispatch(), a, b, applied)
        }
        (Weight::Packed(weight), None) => <Dispatch as LinearOp>::packed_linear(x, weight.clone()),
        (Weight::Packed(weight), Some((a, b, applied))) => {
            <Dispatch as LinearOp>::adapted_packed_linear(x, weight.clone(), a, b, applied)
        }
    })
}

/// The same by burn's own ops.
pub fn reference(x: Tensor<2>, weight: &Weight, adapter: Option<Factors>) -> Tensor<2> {
    let base = x.clone().matmul(weight.to_tensor(&x).transpose());
    let Some(Factors { a, b, scale, dropout }) = adapter else { return base };
    let input = match dropout {
        None => x,
        Some(dropout) => {
            let mask: Vec<f32> = (0..x.dims().iter().product()).map(|index| dropout.factor(index)).collect();
            let mask = Tensor::from_data(TensorData::new(mask, x.dims()), &x.device());
            x * mask
        }
    };
    base + input.matmul(a.transpose()).matmul(b.transpose()) * scale
}

/// How an adapter's factors are applied.
#[derive(Debug, Clone, Copy)]
pub struct Applied {
    pub scale: f32,
    pub dropout: Option<Dropout>,
}

#[backend_extension(Flex, Autodiff)]
pub trait LinearOp: Backend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    fn packed_linear(x: FloatTensor<Self>, weight: Packed) -> FloatTensor<Self>;

    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        applied: Applied,
    ) -> FloatTensor<Self>;

    fn adapted_packed_linear(
        x: FloatTensor<Self>,
        weight: Packed,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        applied: Applied,
    ) -> FloatTensor<Self>;
}

impl LinearOp for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        forward(&contiguous(x), &Matrix::Dense(contiguous(weight)))
    }

    fn packed_linear(x: FlexTensor, weight: Packed) -> FlexTensor {
        forward(&contiguous(x), &Matrix::Packed(weight))
    }

    fn adapted_linear(x: FlexTensor, weight: FlexTensor, a: FlexTensor, b: FlexTensor, applied: Applied) -> FlexTensor {
        adapted_forward(x, Matrix::Dense(contiguous(weight)), a, b, applied).0
    }

    fn adapted_packed_linear(
        x: FlexTensor,
        weight: Packed,
        a: FlexTensor,
        b: FlexTensor,
        applied: Applied,
    ) -> FlexTensor {
        adapted_forward(x, Matrix::Packed(weight), a, b, applied).0
    }
}

impl<C: CheckpointStrategy> LinearOp for Autodiff<Flex, C> {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let weight = Matrix::Dense(contiguous(weight.into_primitive()));
        let output = forward(&contiguous(x.primitive().clone()), &weight);
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&x);
                prep.finish((x, weight), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn packed_linear(x: FloatTensor<Self>, weight: Packed) -> FloatTensor<Self> {
        let node = x.node();
        let weight = Matrix::Packed(weight);
        let output = forward(&contiguous(x.into_primitive()), &weight);
        match PackedLinear.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(weight, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        applied: Applied,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), a.node(), b.node(), weight.node()];
        let weight = Matrix::Dense(contiguous(weight.into_primitive()));
        let (a, b) = (a.into_primitive(), b.into_primitive());
        let (output, saved) = adapted_forward(x.primitive().clone(), weight, a, b, applied);
        match AdaptedLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&x);
                prep.finish((x, saved), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn adapted_packed_linear(
        x: FloatTensor<Self>,
        weight: Packed,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        applied: Applied,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), a.node(), b.node()];
        let (a, b) = (a.into_primitive(), b.into_primitive());
        let (output, saved) = adapted_forward(x.primitive().clone(), Matrix::Packed(weight), a, b, applied);
        match AdaptedLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&x);
                prep.finish((x, saved), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

/// A [`Weight`] on the processor.
#[derive(Debug, Clone)]
enum Matrix {
    Dense(FlexTensor),
    Packed(Packed),
}

impl Matrix {
    fn dims(&self) -> [usize; 2] {
        match self {
            Matrix::Dense(weight) => shape2(weight),
            Matrix::Packed(packed) => packed.dims(),
        }
    }

    /// `output = x · Wᵀ`.
    fn times_transposed(&self, x: &FlexTensor, output: &mut [f32]) {
        match self {
            Matrix::Dense(weight) => matmul(output, Write::Replace, 1.0, view(x), view(weight).t()),
            Matrix::Packed(packed) => packed::times_transposed(elements(x), packed, output, Write::Replace),
        }
    }

    /// `output (=|+=) grad · W`.
    fn times(&self, grad: &FlexTensor, output: &mut [f32], write: Write) {
        match self {
            Matrix::Dense(weight) => matmul(output, write, 1.0, view(grad), view(weight)),
            Matrix::Packed(packed) => packed::times(elements(grad), packed, output, write),
        }
    }
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 2> for Linear {
    type State = (NodeId, Matrix);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, weight) = ops.state;
        let x = contiguous(checkpointer.retrieve_node_output(x));
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, weight_grad(&x, &grad));
        }
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, input_grad(&weight, &grad));
        }
    }
}

#[derive(Debug)]
struct PackedLinear;

impl Backward<Flex, 1> for PackedLinear {
    type State = Matrix;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, input_grad(&ops.state, &grad));
        }
    }
}

#[derive(Debug)]
struct AdaptedLinear;

#[derive(Debug, Clone)]
struct Saved {
    weight: Matrix,
    a: FlexTensor,
    b: FlexTensor,
    /// `dropout(x)·Aᵀ`, `[tokens, rank]`.
    hidden: FlexTensor,
    applied: Applied,
}

impl Backward<Flex, 4> for AdaptedLinear {
    type State = (NodeId, Saved);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, saved) = ops.state;
        let x = contiguous(checkpointer.retrieve_node_output(x));
        let [x_node, a, b, weight] = ops.parents.map(|node| node.map(|node| node.id));
        if let Some(node) = weight {
            grads.register::<Flex>(node, weight_grad(&x, &grad));
        }
        adapted_backward(&x, &saved, &grad, [x_node, a, b], grads);
    }
}

impl Backward<Flex, 3> for AdaptedLinear {
    type State = (NodeId, Saved);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, saved) = ops.state;
        let x = contiguous(checkpointer.retrieve_node_output(x));
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        adapted_backward(&x, &saved, &grad, nodes, grads);
    }
}

/// Registers the gradients of x, A and B, as far as they are wanted.
fn adapted_backward(
    x: &FlexTensor,
    saved: &Saved,
    grad: &FlexTensor,
    nodes: [Option<NodeId>; 3],
    grads: &mut Gradients,
) {
    let Saved { weight, a, b, hidden, applied: Applied { scale, dropout } } = saved;
    let [x_node, a_node, b_node] = nodes;
    let ([tokens, inputs], [outputs, rank]) = (shape2(x), shape2(b));
    if let Some(node) = b_node {
        let mut b_grad = uninit(outputs * rank);
        matmul(&mut b_grad, Write::Replace, *scale, view(grad).t(), view(hidden));
        grads.register::<Flex>(node, tensor(b_grad, [outputs, rank]));
    }
    if a_node.is_none() && x_node.is_none() {
        return;
    }
    let mut hidden_grad = uninit(tokens * rank);
    matmul(&mut hidden_grad, Write::Replace, *scale, view(grad), view(b));
    let hidden_grad = View::new(&hidden_grad, [tokens, rank]);
    if let Some(node) = a_node {
        let dropped = dropout.map(|dropout| dropout.apply(elements(x)));
        let input = View::new(dropped.as_deref().unwrap_or(elements(x)), [tokens, inputs]);
        let mut a_grad = uninit(rank * inputs);
        matmul(&mut a_grad, Write::Replace, 1.0, hidden_grad.t(), input);
        grads.register::<Flex>(node, tensor(a_grad, [rank, inputs]));
    }
    if let Some(node) = x_node {
        let mut x_grad = uninit(tokens * inputs);
        matmul(&mut x_grad, Write::Replace, 1.0, hidden_grad, view(a));
        if let Some(dropout) = dropout {
            x_grad = dropout.apply(&x_grad);
        }
        weight.times(grad, &mut x_grad, Write::Accumulate);
        grads.register::<Flex>(node, tensor(x_grad, [tokens, inputs]));
    }
}

fn forward(x: &FlexTensor, weight: &Matrix) -> FlexTensor {
    let ([tokens, _], [outputs, _]) = (shape2(x), weight.dims());
    let mut output = uninit(tokens * outputs);
    weight.times_transposed(x, &mut output);
    tensor(output, [tokens, outputs])
}

/// The output, and what the backward needs.
fn adapted_forward(
    x: FlexTensor,
    weight: Matrix,
    a: FlexTensor,
    b: FlexTensor,
    applied: Applied,
) -> (FlexTensor, Saved) {
    let [x, a, b] = [x, a, b].map(contiguous);
    let ([tokens, inputs], [outputs, rank]) = (shape2(&x), shape2(&b));
    let mut output = uninit(tokens * outputs);
    weight.times_transposed(&x, &mut output);

    let dropped = applied.dropout.map(|dropout| dropout.apply(elements(&x)));
    let input = dropped.as_ref().map_or(view(&x), |dropped| View::new(dropped, [tokens, inputs]));
    let mut hidden = uninit(tokens * rank);
    matmul(&mut hidden, Write::Replace, 1.0, input, view(&a).t());
    let hidden = tensor(hidden, [tokens, rank]);
    matmul(&mut output, Write::Accumulate, applied.scale, view(&hidden), view(&b).t());
    (tensor(output, [tokens, outputs]), Saved { weight, a, b, hidden, applied })
}

/// `gradᵀ · x`.
fn weight_grad(x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let ([_, inputs], [_, outputs]) = (shape2(x), shape2(grad));
    let mut output = uninit(outputs * inputs);
    matmul(&mut output, Write::Replace, 1.0, view(grad).t(), view(x));
    tensor(output, [outputs, inputs])
}

/// `grad · W`.
fn input_grad(weight: &Matrix, grad: &FlexTensor) -> FlexTensor {
    let ([_, inputs], [tokens, _]) = (weight.dims(), shape2(grad));
    let mut output = uninit(tokens * inputs);
    weight.times(grad, &mut output, Write::Replace);
    tensor(output, [tokens, inputs])
}

fn view(tensor: &FlexTensor) -> View<'_> {
    View::new(elements(tensor), shape2(tensor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random, track, values};
    use crate::{rms_norm, swiglu};
    use burn::tensor::Device;

    type Op = fn(Tensor<2>, &Weight, Option<Factors>) -> Tensor<2>;

    #[test]
    fn forward_and_every_gradient_equal_the_reference() {
        let shapes = [(1, 1, 1, 1), (7, 5, 9, 2), (33, 48, 20, 8)];
        let dropouts = [None, Some(Dropout { probability: 0.3, seed: 11 })];
        for ((tokens, inputs, outputs, rank), dropout) in shapes.into_iter().flat_map(|s| dropouts.map(|d| (s, d))) {
            let (x, weight) = (random([tokens, inputs], 1), random([outputs, inputs], 2));
            let (a, b) = (random([rank, inputs], 3), random([outputs, rank], 4));
            let upstream = random([tokens, outputs], 5);
            let run = |op: Op| {
                let [x, weight, a, b] = [&x, &weight, &a, &b].map(track);
                let factors = Factors { a: a.clone(), b: b.clone(), scale: 0.5, dropout };
                let output = op(x.clone(), &weight.clone().into(), Some(factors));
                let grads = (output.clone() * upstream.clone()).sum().backward();
                let mut results = vec![output.inner()];
                results.extend([x, weight, a, b].map(|leaf| leaf.grad(&grads).unwrap()));
                results
            };
            for (index, (ours, theirs)) in run(linear).into_iter().zip(run(reference)).enumerate() {
                assert_close(ours, theirs, 1e-5, &format!("result {index} of {tokens}x{inputs}x{outputs} {dropout:?}"));
            }
        }
    }

    #[test]
    fn without_an_adapter_it_is_a_plain_product() {
        let (x, weight, upstream) = (random([6, 10], 1), random([4, 10], 2), random([6, 4], 3));
        let run = |op: Op| {
            let (x, weight) = (track(&x), track(&weight));
            let output = op(x.clone(), &weight.clone().into(), None);
            let grads = (output.clone() * upstream.clone()).sum().backward();
            [output.inner(), x.grad(&grads).unwrap(), weight.grad(&grads).unwrap()]
        };
        for (ours, theirs) in run(linear).into_iter().zip(run(reference)) {
            assert_close(ours, theirs, 1e-5, "plain");
        }
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let weight = random([4, 10], 2).detach();
        let a = track(&random([2, 10], 3));
        let factors = Factors { a: a.clone(), b: track(&random([4, 2], 4)), scale: 1.0, dropout: None };
        let grads = linear(random([6, 10], 1), &weight.clone().into(), Some(factors)).sum().backward();
        assert!(a.grad(&grads).is_some());
        assert!(weight.grad(&grads).is_none());
    }

    #[test]
    fn activations_made_a_second_time_give_the_same_gradients_to_the_last_bit() {
        let run = |device: Device, frozen_input: bool| {
            let leaf = |shape: [usize; 2], seed| {
                let values = values(random::<2>(shape, seed));
                Tensor::<2>::from_data(TensorData::new(values, shape), &device).require_grad()
            };
            let (x, a, b) = (leaf([9, 12], 1), leaf([2, 12], 2), leaf([12, 2], 3));
            let weight = leaf([12, 12], 4).detach();
            let scale = Tensor::<1>::ones([12], &device);
            // A frozen embedding is no part of the graph: what is made of it alone must be kept.
            let mut state = if frozen_input { x.clone().detach() } else { x.clone() };
            for seed in 0..3 {
                let normed = rms_norm(state.clone(), scale.clone(), 1e-5);
                let dropout = Some(Dropout { probability: 0.2, seed });
                let factors = Factors { a: a.clone(), b: b.clone(), scale: 0.5, dropout };
                let gate = linear(normed.clone(), &weight.clone().into(), Some(factors.clone()));
                let product = swiglu(gate, linear(normed, &weight.clone().into(), None));
                state = state + linear(product, &weight.clone().into(), Some(factors));
            }
            let grads = state.powf_scalar(2.0).sum().backward();
            [x, a, b].map(|leaf| leaf.grad(&grads).map(values))
        };
        let device = Device::flex().autodiff();
        for frozen_input in [false, true] {
            let kept = run(device.clone(), frozen_input);
            assert_eq!(kept[0].is_none(), frozen_input);
            assert_eq!(run(device.clone().gradient_checkpointing(), frozen_input), kept);
        }
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
