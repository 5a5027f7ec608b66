//! The embedding table: rows gathered by token id. A packed table is decoded row by row and is not trained.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::device::on_cpu;
use crate::{Numbers, Weight};

/// Row `ids[i]` of the table as row `i`, on `device`.
pub fn embedding(table: &Weight, ids: &[u32], device: &Device) -> Tensor<2> {
    let [vocabulary, features] = table.dims();
    assert!(ids.iter().all(|&id| (id as usize) < vocabulary), "ids lie in the vocabulary");
    match &table.numbers {
        Numbers::Dense(numbers) if !on_cpu(numbers) => reference(table, ids, device),
        Numbers::Dense(table) => {
            let table = table.clone().into_dispatch();
            Tensor::from_dispatch(<Dispatch as EmbeddingOp>::embedding(table, ids.to_vec()))
        }
        Numbers::Packed(table) => Tensor::from_data(TensorData::new(table.gather(ids), [ids.len(), features]), device),
    }
}

/// The same by burn's own ops.
pub fn reference(table: &Weight, ids: &[u32], device: &Device) -> Tensor<2> {
    let table = table.to_tensor(device);
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let count = ids.len();
    table.select(0, Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), device))
}

#[backend_extension(Flex, Autodiff)]
pub trait EmbeddingOp: Backend {
    fn embedding(table: FloatTensor<Self>, ids: Vec<u32>) -> FloatTensor<Self>;
}

impl EmbeddingOp for Flex {
    fn embedding(table: FlexTensor, ids: Vec<u32>) -> FlexTensor {
        let table = contiguous(table);
        let [_, features] = shape2(&table);
        let mut output = uninit(ids.len() * features);
        output.par_chunks_mut(features).zip(&ids).for_each(|(output, &id)| {
            output.copy_from_slice(&elements(&table)[id as usize * features..][..features]);
        });
        tensor(output, [ids.len(), features])
    }
}

impl<C: CheckpointStrategy> EmbeddingOp for Autodiff<Flex, C> {
    fn embedding(table: FloatTensor<Self>, ids: Vec<u32>) -> FloatTensor<Self> {
        let node = table.node();
        let table = table.into_primitive();
        let vocabulary = shape2(&table)[0];
        let output = Flex::embedding(table, ids.clone());
        match Embedding.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((vocabulary, ids), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Embedding;

impl Backward<Flex, 1> for Embedding {
    /// Rows of the table, and the ids.
    type State = (usize, Vec<u32>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let [Some(node)] = ops.parents else { return };
        let (vocabulary, ids) = ops.state;
        let [_, features] = shape2(&grad);
        let mut table_grad = vec![0.0; vocabulary * features];
        // One after the other: a token that comes twice adds up, always in the same order.
        for (&id, grad) in ids.iter().zip(elements(&grad).chunks(features)) {
            let row = &mut table_grad[id as usize * features..][..features];
            row.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
        }
        grads.register::<Flex>(node.id, tensor(table_grad, [vocabulary, features]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::testing::every_form;
    use crate::testing::{assert_close, random, track};

    type Op = fn(&Weight, &[u32], &Device) -> Tensor<2>;

    #[test]
    fn rows_and_their_gradient_equal_the_reference() {
        let device = Device::flex().autodiff();
        for (dims, ids) in [([1, 1], vec![0]), ([9, 7], vec![8, 0, 3, 8, 8])] {
            let (table, upstream) = (random(dims, 1), random([ids.len(), dims[1]], 2));
            let run = |op: Op| {
                let table = track(&table);
                let output = op(&table.clone().into(), &ids, &device);
                let grads = (output.clone() * upstream.clone()).sum().backward();
                [output.inner(), table.grad(&grads).unwrap()]
            };
            for (ours, theirs) in run(embedding).into_iter().zip(run(reference)) {
                assert_close(ours, theirs, 1e-6, "embedding");
            }
        }
    }

    #[test]
    fn rows_of_a_packed_table_are_the_decoded_ones() {
        let device = Device::flex();
        for (name, packed) in every_form([9, 256], 4) {
            let table = Weight::from(packed);
            let ids = [8, 0, 3, 8];
            assert_close(embedding(&table, &ids, &device), reference(&table, &ids, &device), 0.0, &name);
        }
    }
}
