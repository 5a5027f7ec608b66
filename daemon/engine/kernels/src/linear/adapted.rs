//! The layer with its low-rank adapter, which stays factored.

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use super::plain::weight_grad;
use super::{Applied, view};
use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::matmul::{View, Write};
use crate::matrix::Matrix;
use crate::simd::scale;

#[derive(Debug)]
pub(super) struct AdaptedLinear;

#[derive(Debug, Clone)]
pub(super) struct Saved {
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
            grads.register::<Flex>(node, weight_grad(saved.weight.products, &x, &grad));
        }
        backward(&x, &saved, &grad, [x_node, a, b], grads);
    }
}

impl Backward<Flex, 3> for AdaptedLinear {
    type State = (NodeId, Saved);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, saved) = ops.state;
        let x = contiguous(checkpointer.retrieve_node_output(x));
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        backward(&x, &saved, &grad, nodes, grads);
    }
}

/// Registers the gradients of x, A and B, as far as they are wanted.
fn backward(x: &FlexTensor, saved: &Saved, grad: &FlexTensor, nodes: [Option<NodeId>; 3], grads: &mut Gradients) {
    let Saved { weight, a, b, hidden, applied: Applied { scale, dropout } } = saved;
    let [x_node, a_node, b_node] = nodes;
    let ([tokens, inputs], [outputs, rank]) = (shape2(x), shape2(b));
    let products = weight.products;
    if let Some(node) = b_node {
        let transposed = products.outer(view(hidden), view(grad), *scale);
        let mut b_grad = uninit(outputs * rank);
        for (output, row) in b_grad.chunks_mut(rank).enumerate() {
            row.iter_mut().enumerate().for_each(|(at, value)| *value = transposed[at * outputs + output]);
        }
        grads.register::<Flex>(node, tensor(b_grad, [outputs, rank]));
    }
    if a_node.is_none() && x_node.is_none() {
        return;
    }
    let mut grad_side = products.side_with_room(view(grad), rank);
    let mut hidden_grad = uninit(tokens * rank);
    grad_side.matmul(&mut hidden_grad, Write::Replace, *scale, view(b));
    let hidden_grad = View::new(&hidden_grad, [tokens, rank]);
    if let Some(node) = a_node {
        let dropped = dropout.map(|dropout| dropout.apply(elements(x)));
        let input = View::new(dropped.as_deref().unwrap_or(elements(x)), [tokens, inputs]);
        grads.register::<Flex>(node, tensor(products.outer(hidden_grad, input, 1.0), [rank, inputs]));
    }
    if let Some(node) = x_node {
        let mut x_grad = uninit(tokens * inputs);
        match dropout {
            None => weight.times_with(&mut grad_side, &mut x_grad, hidden_grad, view(a), false),
            Some(dropout) => {
                products.side(hidden_grad).matmul(&mut x_grad, Write::Replace, 1.0, view(a));
                x_grad = dropout.apply(&x_grad);
                weight.times(&grad_side, &mut x_grad, Write::Accumulate);
            }
        }
        grads.register::<Flex>(node, tensor(x_grad, [tokens, inputs]));
    }
}

/// The output, and what the backward needs.
pub(super) fn forward(
    x: FlexTensor,
    weight: Matrix,
    a: FlexTensor,
    b: FlexTensor,
    applied: Applied,
) -> (FlexTensor, Saved) {
    let [x, a, b] = [x, a, b].map(contiguous);
    let ([tokens, inputs], [outputs, rank]) = (shape2(&x), shape2(&b));
    let products = weight.products;
    let mut side = products.side_with_room(view(&x), rank);
    let dropped = applied.dropout.map(|dropout| dropout.apply(elements(&x)));
    let dropped = dropped.as_ref().map(|dropped| products.side(View::new(dropped, [tokens, inputs])));
    let mut hidden = uninit(tokens * rank);
    dropped.as_ref().unwrap_or(&side).matmul(&mut hidden, Write::Replace, 1.0, view(&a).t());

    let mut low = hidden.clone();
    scale(&mut low, applied.scale);
    let mut output = uninit(tokens * outputs);
    weight.times_with(&mut side, &mut output, View::new(&low, [tokens, rank]), view(&b), true);
    let hidden = tensor(hidden, [tokens, rank]);
    (tensor(output, [tokens, outputs]), Saved { weight, a, b, hidden, applied })
}
