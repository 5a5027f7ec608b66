//! What a forward leaves for its backward: a tensor as it is, or in half the memory.

use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{contiguous, shape2, tensor, uninit};
use crate::{Products, bf16, f16, simd};

/// Clones share the memory.
#[derive(Debug, Clone)]
pub(crate) enum Kept {
    Exact(FlexTensor),
    Rounded { bits: Arc<Vec<u16>>, shape: [usize; 2], narrow: Narrow },
}

/// Numbers in 16 bits: how they are made, and made `f32` again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Narrow {
    round: fn(&[f32], &mut [u16]),
    widen: fn(&[u16], &mut [f32]),
}

impl Narrow {
    fn of(products: Products) -> Option<Self> {
        match products {
            Products::F32 => None,
            Products::Bf16 => Some(Self { round: bf16::round_all, widen: simd::widen }),
            Products::F16 => Some(Self { round: f16::round_all, widen: f16::widen }),
        }
    }
}

/// Elements that one task handles.
const CHUNK: usize = 16 * 1024;

impl Kept {
    /// Returns the tensor as the backward will see it: both passes have to compute with the same numbers.
    pub(crate) fn new(tensor: FlexTensor, products: Products) -> (Self, FlexTensor) {
        let mut tensor = contiguous(tensor);
        let Some(narrow) = Narrow::of(products) else { return (Kept::Exact(tensor.clone()), tensor) };
        let shape = shape2(&tensor);
        let mut bits = uninit(shape[0] * shape[1]);
        let chunks = tensor.storage_mut::<f32>().par_chunks_mut(CHUNK).zip(bits.par_chunks_mut(CHUNK));
        chunks.for_each(|(numbers, bits)| {
            (narrow.round)(numbers, bits);
            (narrow.widen)(bits, numbers);
        });
        (Kept::Rounded { bits: Arc::new(bits), shape, narrow }, tensor)
    }

    pub(crate) fn tensor(&self) -> FlexTensor {
        match self {
            Kept::Exact(tensor) => tensor.clone(),
            Kept::Rounded { bits, shape, narrow } => {
                let mut numbers = uninit(bits.len());
                numbers
                    .par_chunks_mut(CHUNK)
                    .zip(bits.par_chunks(CHUNK))
                    .for_each(|(numbers, bits)| (narrow.widen)(bits, numbers));
                tensor(numbers, *shape)
            }
        }
    }
}

/// Stands in the graph for an input of which [`Kept`] is all that is needed: to make an output again, burn wants its op's
/// parents, and so would keep the input itself from the forward to the backward.
pub(crate) fn stand_in<C: CheckpointStrategy>(input: NodeGuard) -> FloatTensor<Autodiff<Flex, C>> {
    let nothing = tensor(Vec::new(), [0, 0]);
    match StandIn.prepare::<C>([input]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((), nothing),
        OpsKind::UnTracked(prep) => prep.finish(nothing),
    }
}

#[derive(Debug)]
struct StandIn;

impl Backward<Flex, 1> for StandIn {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, grad);
        }
    }
}

/// An output that is kept for this op's own backward is not kept a second time for that of the next.
impl RetroForward for Kept {
    fn forward(&self, states: &mut BackwardStates, output: NodeId) {
        states.save(output, self.tensor());
    }
}
