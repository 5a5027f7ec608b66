//! The layer without an adapter.

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;

use super::view;
use crate::Products;
use crate::buffer::{contiguous, shape2, tensor, uninit};
use crate::matmul::Write;
use crate::matrix::Matrix;

/// A weight that may be trained.
#[derive(Debug)]
pub(super) struct Linear;

impl Backward<Flex, 2> for Linear {
    type State = (NodeId, Matrix);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (x, weight) = ops.state;
        let x = contiguous(checkpointer.retrieve_node_output(x));
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, weight_grad(weight.products, &x, &grad));
        }
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, input_grad(&weight, &grad));
        }
    }
}

/// A frozen weight: nothing but itself is kept for the backward.
#[derive(Debug)]
pub(super) struct PackedLinear;

impl Backward<Flex, 1> for PackedLinear {
    type State = Matrix;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, input_grad(&ops.state, &grad));
        }
    }
}

pub(super) fn forward(x: &FlexTensor, weight: &Matrix) -> FlexTensor {
    let ([tokens, _], [outputs, _]) = (shape2(x), weight.dims());
    let mut output = uninit(tokens * outputs);
    weight.times_transposed(&weight.products.side(view(x)), &mut output);
    tensor(output, [tokens, outputs])
}

/// `gradᵀ · x`.
pub(super) fn weight_grad(products: Products, x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let ([_, inputs], [_, outputs]) = (shape2(x), shape2(grad));
    let mut output = uninit(outputs * inputs);
    products.side(view(grad).t()).matmul(&mut output, Write::Replace, 1.0, view(x));
    tensor(output, [outputs, inputs])
}

/// `grad · W`.
fn input_grad(weight: &Matrix, grad: &FlexTensor) -> FlexTensor {
    let ([_, inputs], [tokens, _]) = (weight.dims(), shape2(grad));
    let mut output = uninit(tokens * inputs);
    weight.times(&weight.products.side(view(grad)), &mut output, Write::Replace);
    tensor(output, [tokens, inputs])
}
