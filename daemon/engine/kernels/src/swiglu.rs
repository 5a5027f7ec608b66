//! SwiGLU: `silu(gate) · up`, element by element (Shazeer 2020, arXiv 2002.05202).

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
use crate::simd::{exp, simd_fn};

/// `silu(gate) · up`; both and the result are `[tokens, features]`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims());
    Tensor::from_dispatch(<Dispatch as SwiGluOp>::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

/// The same by burn's own ops.
pub fn reference(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    burn::tensor::activation::silu(gate) * up
}

#[backend_extension(Flex, Autodiff)]
pub trait SwiGluOp: Backend {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl SwiGluOp for Flex {
    fn swiglu(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        forward(&contiguous(gate), &contiguous(up))
    }
}

impl<C: CheckpointStrategy> SwiGluOp for Autodiff<Flex, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [gate.node(), up.node()];
        let inputs = Inputs { gate: gate.id(), up: up.id() };
        let prep = SwiGlu.prepare::<C>(nodes).memory_bound().retro_forward(inputs).parents([&gate, &up]);
        let output = Flex::swiglu(gate.primitive().clone(), up.primitive().clone());
        match prep.stateful() {
            OpsKind::Tracked(mut prep) => {
                prep.checkpoint(&gate);
                prep.checkpoint(&up);
                prep.finish(inputs, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct SwiGlu;

#[derive(Debug, Clone, Copy)]
struct Inputs {
    gate: NodeId,
    up: NodeId,
}

/// Makes the output a second time, so that nothing keeps it from the forward to the backward.
impl RetroForward for Inputs {
    fn forward(&self, states: &mut BackwardStates, output: NodeId) {
        let (gate, up) = (states.get_state(&self.gate), states.get_state(&self.up));
        states.save(output, Flex::swiglu(gate, up));
    }
}

impl Backward<Flex, 2> for SwiGlu {
    type State = Inputs;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [gate, up] = [ops.state.gate, ops.state.up].map(|node| contiguous(checkpointer.retrieve_node_output(node)));
        let [gate_node, up_node] = ops.parents;
        let (gate_grad, up_grad) = backward(&gate, &up, &grad);
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

fn forward(gate: &FlexTensor, up: &FlexTensor) -> FlexTensor {
    let mut output = uninit(elements(gate).len());
    output
        .par_chunks_mut(CHUNK)
        .zip(elements(gate).par_chunks(CHUNK).zip(elements(up).par_chunks(CHUNK)))
        .for_each(|(output, (gate, up))| forward_chunk(gate, up, output));
    tensor(output, shape2(gate))
}

fn backward(gate: &FlexTensor, up: &FlexTensor, grad: &FlexTensor) -> (FlexTensor, FlexTensor) {
    let mut gate_grad = uninit(elements(gate).len());
    let mut up_grad = uninit(elements(gate).len());
    gate_grad
        .par_chunks_mut(CHUNK)
        .zip(up_grad.par_chunks_mut(CHUNK))
        .zip(elements(gate).par_chunks(CHUNK).zip(elements(up).par_chunks(CHUNK)))
        .zip(elements(grad).par_chunks(CHUNK))
        .for_each(|(((gate_grad, up_grad), (gate, up)), grad)| backward_chunk(gate, up, grad, gate_grad, up_grad));
    let shape = shape2(gate);
    (tensor(gate_grad, shape), tensor(up_grad, shape))
}

simd_fn! {
    fn forward_chunk(gate: &[f32], up: &[f32], output: &mut [f32]) {
        for ((output, &gate), &up) in output.iter_mut().zip(gate).zip(up) {
            *output = gate / (1.0 + exp::<FMA>(-gate)) * up;
        }
    }
}

simd_fn! {
    fn backward_chunk(gate: &[f32], up: &[f32], grad: &[f32], gate_grad: &mut [f32], up_grad: &mut [f32]) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random, track};

    #[test]
    fn forward_and_gradients_equal_the_reference() {
        crate::simd::testing::at_every_level(|level| {
            for [rows, cols] in [[1, 1], [3, 17], [70, 300]] {
                let (gate, up, weight) = (random([rows, cols], 1), random([rows, cols], 2), random([rows, cols], 3));
                let run = |op: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
                    let (gate, up) = (track(&gate), track(&up));
                    let output = op(gate.clone(), up.clone());
                    let grads = (output.clone() * weight.clone()).sum().backward();
                    [output.inner(), gate.grad(&grads).unwrap(), up.grad(&grads).unwrap()]
                };
                for (ours, theirs) in run(swiglu).into_iter().zip(run(reference)) {
                    assert_close(ours, theirs, 1e-5, &format!("{level:?} {rows}x{cols}"));
                }
            }
        });
    }
}
