//! A linear layer with an optional low-rank adapter: `y = x·Wᵀ + s·(dropout(x)·Aᵀ)·Bᵀ` (LoRA, Hu et al. 2021, arXiv
//! 2106.09685).
//!
//! The adapter stays factored: no dense `W + s·B·A` is ever made, and no gradient of a frozen `W` is computed.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::matmul::{View, Write, matmul};

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
pub fn linear(x: Tensor<2>, weight: Tensor<2>, adapter: Option<Factors>) -> Tensor<2> {
    assert_eq!(x.dims()[1], weight.dims()[1]);
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match adapter {
        None => <Dispatch as LinearOp>::linear(x, weight),
        Some(Factors { a, b, scale, dropout }) => {
            assert_eq!(a.dims()[0], b.dims()[1], "both factors have the adapter's rank");
            <Dispatch as LinearOp>::adapted_linear(x, weight, a.into_dispatch(), b.into_dispatch(), scale, dropout)
        }
    })
}

/// The same by burn's own ops.
pub fn reference(x: Tensor<2>, weight: Tensor<2>, adapter: Option<Factors>) -> Tensor<2> {
    let base = x.clone().matmul(weight.transpose());
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

#[backend_extension(Flex, Autodiff)]
pub trait LinearOp: Backend {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
        dropout: Option<Dropout>,
    ) -> FloatTensor<Self>;
}

impl LinearOp for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        forward(&contiguous(x), &contiguous(weight))
    }

    fn adapted_linear(
        x: FlexTensor,
        weight: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
        scale: f32,
        dropout: Option<Dropout>,
    ) -> FlexTensor {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let (a, b) = (contiguous(a), contiguous(b));
        adapted_forward(&x, &weight, &a, &b, scale, dropout).0
    }
}

impl<C: CheckpointStrategy> LinearOp for Autodiff<Flex, C> {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let (x, weight) = (contiguous(x.into_primitive()), contiguous(weight.into_primitive()));
        let output = forward(&x, &weight);
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
        dropout: Option<Dropout>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), a.node(), b.node()];
        let (x, weight) = (contiguous(x.into_primitive()), contiguous(weight.into_primitive()));
        let (a, b) = (contiguous(a.into_primitive()), contiguous(b.into_primitive()));
        let (output, hidden) = adapted_forward(&x, &weight, &a, &b, scale, dropout);
        match AdaptedLinear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved { x, weight, a, b, hidden, scale, dropout }, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 2> for Linear {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, weight) = ops.state;
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
struct AdaptedLinear;

#[derive(Debug, Clone)]
struct Saved {
    x: FlexTensor,
    weight: FlexTensor,
    a: FlexTensor,
    b: FlexTensor,
    /// `dropout(x)·Aᵀ`, `[tokens, rank]`.
    hidden: FlexTensor,
    scale: f32,
    dropout: Option<Dropout>,
}

impl Backward<Flex, 4> for AdaptedLinear {
    type State = Saved;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let Saved { x, weight, a, b, hidden, scale, dropout } = ops.state;
        let [x_node, weight_node, a_node, b_node] = ops.parents;
        let ([tokens, inputs], [outputs, rank]) = (shape2(&x), shape2(&b));
        let grad_view = View::new(elements(&grad), [tokens, outputs]);

        if let Some(node) = b_node {
            let mut b_grad = uninit(outputs * rank);
            let hidden = View::new(elements(&hidden), [tokens, rank]);
            matmul(&mut b_grad, Write::Replace, scale, grad_view.t(), hidden);
            grads.register::<Flex>(node.id, tensor(b_grad, [outputs, rank]));
        }
        if a_node.is_none() && x_node.is_none() && weight_node.is_none() {
            return;
        }
        let mut hidden_grad = uninit(tokens * rank);
        matmul(&mut hidden_grad, Write::Replace, scale, grad_view, View::new(elements(&b), [outputs, rank]));
        let hidden_grad = View::new(&hidden_grad, [tokens, rank]);
        if let Some(node) = a_node {
            let dropped = dropout.map(|dropout| dropout.apply(elements(&x)));
            let input = View::new(dropped.as_deref().unwrap_or(elements(&x)), [tokens, inputs]);
            let mut a_grad = uninit(rank * inputs);
            matmul(&mut a_grad, Write::Replace, 1.0, hidden_grad.t(), input);
            grads.register::<Flex>(node.id, tensor(a_grad, [rank, inputs]));
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, weight_grad(&x, &grad));
        }
        if let Some(node) = x_node {
            let a = View::new(elements(&a), [rank, inputs]);
            let weight = View::new(elements(&weight), [outputs, inputs]);
            let mut x_grad = uninit(tokens * inputs);
            match dropout {
                None => matmul(&mut x_grad, Write::Replace, 1.0, hidden_grad, a),
                Some(dropout) => {
                    let mut dropped = uninit(tokens * inputs);
                    matmul(&mut dropped, Write::Replace, 1.0, hidden_grad, a);
                    x_grad = dropout.apply(&dropped);
                }
            }
            matmul(&mut x_grad, Write::Accumulate, 1.0, grad_view, weight);
            grads.register::<Flex>(node.id, tensor(x_grad, [tokens, inputs]));
        }
    }
}

fn forward(x: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let ([tokens, inputs], [outputs, _]) = (shape2(x), shape2(weight));
    let mut output = uninit(tokens * outputs);
    let weight = View::new(elements(weight), [outputs, inputs]);
    matmul(&mut output, Write::Replace, 1.0, View::new(elements(x), [tokens, inputs]), weight.t());
    tensor(output, [tokens, outputs])
}

/// The output and `dropout(x)·Aᵀ`.
fn adapted_forward(
    x: &FlexTensor,
    weight: &FlexTensor,
    a: &FlexTensor,
    b: &FlexTensor,
    scale: f32,
    dropout: Option<Dropout>,
) -> (FlexTensor, FlexTensor) {
    let ([tokens, inputs], [outputs, rank]) = (shape2(x), shape2(b));
    let input = View::new(elements(x), [tokens, inputs]);
    let mut output = uninit(tokens * outputs);
    matmul(&mut output, Write::Replace, 1.0, input, View::new(elements(weight), [outputs, inputs]).t());

    let dropped = dropout.map(|dropout| dropout.apply(elements(x)));
    let input = dropped.as_ref().map_or(input, |dropped| View::new(dropped, [tokens, inputs]));
    let mut hidden = uninit(tokens * rank);
    matmul(&mut hidden, Write::Replace, 1.0, input, View::new(elements(a), [rank, inputs]).t());
    let hidden_view = View::new(&hidden, [tokens, rank]);
    matmul(&mut output, Write::Accumulate, scale, hidden_view, View::new(elements(b), [outputs, rank]).t());
    (tensor(output, [tokens, outputs]), tensor(hidden, [tokens, rank]))
}

/// `gradᵀ · x`.
fn weight_grad(x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let ([tokens, inputs], [_, outputs]) = (shape2(x), shape2(grad));
    let mut output = uninit(outputs * inputs);
    let grad = View::new(elements(grad), [tokens, outputs]);
    matmul(&mut output, Write::Replace, 1.0, grad.t(), View::new(elements(x), [tokens, inputs]));
    tensor(output, [outputs, inputs])
}

/// `grad · W`.
fn input_grad(weight: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let ([outputs, inputs], [tokens, _]) = (shape2(weight), shape2(grad));
    let mut output = uninit(tokens * inputs);
    let weight = View::new(elements(weight), [outputs, inputs]);
    matmul(&mut output, Write::Replace, 1.0, View::new(elements(grad), [tokens, outputs]), weight);
    tensor(output, [tokens, inputs])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random, track};

    type Op = fn(Tensor<2>, Tensor<2>, Option<Factors>) -> Tensor<2>;

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
                let output = op(x.clone(), weight.clone(), Some(factors));
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
            let output = op(x.clone(), weight.clone(), None);
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
        let grads = linear(random([6, 10], 1), weight.clone(), Some(factors)).sum().backward();
        assert!(a.grad(&grads).is_some());
        assert!(weight.grad(&grads).is_none());
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
