//! Gated linear units: `activation(gate) · up`, element by element (SwiGLU and GEGLU, Shazeer 2020, arXiv 2002.05202).

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

use crate::Products;
use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::device::on_cpu;
use crate::kept::{Kept, stand_in};
use crate::simd::{exp, mul_add, simd_fn, tanh};

/// What the gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// The approximation of GELU by a hyperbolic tangent (Hendrycks & Gimpel 2016, arXiv 1606.08415).
    GeluTanh,
}

/// `activation(gate) · up`; both and the result are `[tokens, features]`.
/// `products` is what both are rounded to.
pub fn gated(gate: Tensor<2>, up: Tensor<2>, activation: Activation, products: Products) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims());
    if !on_cpu(&gate) {
        return reference(gate, up, activation);
    }
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(match products {
        Products::F32 => <Dispatch as GatedOp>::gated(gate, up, activation),
        narrow => <Dispatch as GatedOp>::rounded_gated(gate, up, activation, narrow),
    })
}

/// The same by burn's own ops.
pub fn reference(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    let gate = match activation {
        Activation::Silu => burn::tensor::activation::silu(gate),
        Activation::GeluTanh => burn::tensor::activation::gelu_approximate(gate),
    };
    gate * up
}

#[backend_extension(Flex, Autodiff)]
pub trait GatedOp: Backend {
    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    fn rounded_gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        products: Products,
    ) -> FloatTensor<Self>;
}

impl GatedOp for Flex {
    fn gated(gate: FlexTensor, up: FlexTensor, activation: Activation) -> FlexTensor {
        forward(&contiguous(gate), &contiguous(up), activation)
    }

    fn rounded_gated(gate: FlexTensor, up: FlexTensor, activation: Activation, products: Products) -> FlexTensor {
        Rounded::new(gate, up, activation, products).1
    }
}

impl<C: CheckpointStrategy> GatedOp for Autodiff<Flex, C> {
    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let nodes = [gate.node(), up.node()];
        let inputs = Inputs { gate: gate.id(), up: up.id(), activation };
        let prep = Gated.prepare::<C>(nodes).memory_bound().retro_forward(inputs).parents([&gate, &up]);
        let output = Flex::gated(gate.primitive().clone(), up.primitive().clone(), activation);
        match prep.stateful() {
            OpsKind::Tracked(mut prep) => {
                prep.checkpoint(&gate);
                prep.checkpoint(&up);
                prep.finish(Saved::Nodes(inputs), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn rounded_gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        products: Products,
    ) -> FloatTensor<Self> {
        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        let (rounded, output) = Rounded::new(gate, up, activation, products);
        let [gate, up] = [gate_node, up_node].map(stand_in::<C>);
        let prep = Gated.prepare::<C>([gate.node(), up.node()]).memory_bound().retro_forward(rounded.clone());
        match prep.parents([&gate, &up]).stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved::Rounded(Box::new(rounded)), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Gated;

#[derive(Debug, Clone, Copy)]
struct Inputs {
    gate: NodeId,
    up: NodeId,
    activation: Activation,
}

/// Makes the output a second time, so that nothing keeps it from the forward to the backward.
impl RetroForward for Inputs {
    fn forward(&self, states: &mut BackwardStates, output: NodeId) {
        let (gate, up) = (states.get_state(&self.gate), states.get_state(&self.up));
        states.save(output, Flex::gated(gate, up, self.activation));
    }
}

/// Both inputs in half the memory.
#[derive(Debug, Clone)]
struct Rounded {
    gate: Kept,
    up: Kept,
    activation: Activation,
}

impl Rounded {
    /// With the output.
    fn new(gate: FlexTensor, up: FlexTensor, activation: Activation, products: Products) -> (Self, FlexTensor) {
        let [(gate, of_gate), (up, of_up)] = [gate, up].map(|x| Kept::new(x, products));
        (Self { gate, up, activation }, forward(&of_gate, &of_up, activation))
    }
}

impl RetroForward for Rounded {
    fn forward(&self, states: &mut BackwardStates, output: NodeId) {
        states.save(output, forward(&self.gate.tensor(), &self.up.tensor(), self.activation));
    }
}

#[derive(Debug, Clone)]
enum Saved {
    Nodes(Inputs),
    Rounded(Box<Rounded>),
}

impl Backward<Flex, 2> for Gated {
    type State = Saved;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let (gate, up, activation) = match ops.state {
            Saved::Nodes(Inputs { gate, up, activation }) => {
                let [gate, up] = [gate, up].map(|node| contiguous(checkpointer.retrieve_node_output(node)));
                (gate, up, activation)
            }
            Saved::Rounded(rounded) => (rounded.gate.tensor(), rounded.up.tensor(), rounded.activation),
        };
        let [gate_node, up_node] = ops.parents;
        let (gate_grad, up_grad) = backward(&gate, &up, &grad, activation);
        if let Some(node) = gate_node {
            grads.register::<Flex>(node.id, gate_grad);
        }
        if let Some(node) = up_node {
            grads.register::<Flex>(node.id, up_grad);
        }
    }
}

/// Elements that one task handles: enough to outweigh its start, few enough to stay in the cache.
const CHUNK: usize = 16 * 1024;

fn forward(gate: &FlexTensor, up: &FlexTensor, activation: Activation) -> FlexTensor {
    let chunk = match activation {
        Activation::Silu => silu_chunk,
        Activation::GeluTanh => gelu_chunk,
    };
    let mut output = uninit(elements(gate).len());
    output
        .par_chunks_mut(CHUNK)
        .zip(elements(gate).par_chunks(CHUNK).zip(elements(up).par_chunks(CHUNK)))
        .for_each(|(output, (gate, up))| chunk(gate, up, output));
    tensor(output, shape2(gate))
}

fn backward(gate: &FlexTensor, up: &FlexTensor, grad: &FlexTensor, activation: Activation) -> (FlexTensor, FlexTensor) {
    let chunk = match activation {
        Activation::Silu => silu_backward_chunk,
        Activation::GeluTanh => gelu_backward_chunk,
    };
    let mut gate_grad = uninit(elements(gate).len());
    let mut up_grad = uninit(elements(gate).len());
    gate_grad
        .par_chunks_mut(CHUNK)
        .zip(up_grad.par_chunks_mut(CHUNK))
        .zip(elements(gate).par_chunks(CHUNK).zip(elements(up).par_chunks(CHUNK)))
        .zip(elements(grad).par_chunks(CHUNK))
        .for_each(|(((gate_grad, up_grad), (gate, up)), grad)| chunk(gate, up, grad, gate_grad, up_grad));
    let shape = shape2(gate);
    (tensor(gate_grad, shape), tensor(up_grad, shape))
}

simd_fn! {
    fn silu_chunk(gate: &[f32], up: &[f32], output: &mut [f32]) {
        for ((output, &gate), &up) in output.iter_mut().zip(gate).zip(up) {
            *output = gate / (1.0 + exp::<FMA>(-gate)) * up;
        }
    }
}

simd_fn! {
    fn silu_backward_chunk(gate: &[f32], up: &[f32], grad: &[f32], gate_grad: &mut [f32], up_grad: &mut [f32]) {
        let len = gate.len();
        let (up, grad) = (&up[..len], &grad[..len]);
        let (gate_grad, up_grad) = (&mut gate_grad[..len], &mut up_grad[..len]);
        for i in 0..len {
            let sigmoid = 1.0 / (1.0 + exp::<FMA>(-gate[i]));
            let silu = gate[i] * sigmoid;
            up_grad[i] = grad[i] * silu;
            gate_grad[i] = grad[i] * up[i] * (sigmoid + silu * (1.0 - sigmoid));
        }
    }
}

/// `√(2/π)`, and what the cube of the input is weighted by.
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

simd_fn! {
    fn gelu_chunk(gate: &[f32], up: &[f32], output: &mut [f32]) {
        for ((output, &gate), &up) in output.iter_mut().zip(gate).zip(up) {
            let inner = GELU.0 * gate * mul_add::<FMA>(GELU.1 * gate, gate, 1.0);
            *output = 0.5 * gate * (1.0 + tanh::<FMA>(inner)) * up;
        }
    }
}

simd_fn! {
    fn gelu_backward_chunk(gate: &[f32], up: &[f32], grad: &[f32], gate_grad: &mut [f32], up_grad: &mut [f32]) {
        let len = gate.len();
        let (up, grad) = (&up[..len], &grad[..len]);
        let (gate_grad, up_grad) = (&mut gate_grad[..len], &mut up_grad[..len]);
        for i in 0..len {
            let square = gate[i] * gate[i];
            let tanh = tanh::<FMA>(GELU.0 * gate[i] * mul_add::<FMA>(GELU.1, square, 1.0));
            let half = 0.5 * (1.0 + tanh);
            let inner_slope = GELU.0 * mul_add::<FMA>(3.0 * GELU.1, square, 1.0);
            up_grad[i] = grad[i] * gate[i] * half;
            gate_grad[i] = grad[i] * up[i] * (half + 0.5 * gate[i] * (1.0 - tanh * tanh) * inner_slope);
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
            let shapes = [[1, 1], [3, 17], [70, 300]];
            let cases =
                [Activation::Silu, Activation::GeluTanh].map(|activation| shapes.map(|shape| (shape, activation)));
            for ([rows, cols], activation) in cases.into_iter().flatten() {
                let (gate, up, weight) = (random([rows, cols], 1), random([rows, cols], 2), random([rows, cols], 3));
                let run = |op: &dyn Fn(Tensor<2>, Tensor<2>, Activation) -> Tensor<2>| {
                    let (gate, up) = (track(&gate), track(&up));
                    let output = op(gate.clone(), up.clone(), activation);
                    let grads = (output.clone() * weight.clone()).sum().backward();
                    [output.inner(), gate.grad(&grads).unwrap(), up.grad(&grads).unwrap()]
                };
                // bfloat16 has 8 bits: each input is wrong by at most 2⁻⁹ of itself.
                for (products, tolerance) in [(Products::F32, 1e-5), (Products::Bf16, 1e-2), (Products::F16, 1e-3)] {
                    let ours = run(&|gate, up, activation| gated(gate, up, activation, products));
                    for (ours, theirs) in ours.into_iter().zip(run(&reference)) {
                        let what = format!("{level:?} {activation:?} {rows}x{cols} {products:?}");
                        assert_close(ours, theirs, tolerance, &what);
                    }
                }
            }
        });
    }
}
