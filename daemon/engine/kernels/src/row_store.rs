//! Writes rows into a tensor that is kept, such as a key/value cache: in place where nothing else holds it.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::buffer::{contiguous, elements, shape2};
use crate::device::on_cpu;

/// `store[indices[i]] ← rows[i]`; `store` is `[capacity, features]`, `rows` `[n, features]`. Not differentiable.
pub fn write_rows(store: Tensor<2>, rows: Tensor<2>, indices: Vec<usize>) -> Tensor<2> {
    assert_eq!(rows.dims()[0], indices.len());
    assert_eq!(rows.dims()[1], store.dims()[1]);
    assert!(indices.iter().all(|&index| index < store.dims()[0]));
    if !on_cpu(&store) {
        return reference(store, rows, &indices);
    }
    let store = <Dispatch as RowStoreOp>::write_rows(store.into_dispatch(), rows.into_dispatch(), indices);
    Tensor::from_dispatch(store)
}

/// The same by burn's own ops.
pub fn reference(store: Tensor<2>, rows: Tensor<2>, indices: &[usize]) -> Tensor<2> {
    let mut store = store;
    // Neighbouring rows are written together: a sequence that is read for the first time is one piece.
    for run in indices.iter().enumerate().collect::<Vec<_>>().chunk_by(|(_, a), (_, b)| **a + 1 == **b) {
        let ((first, &start), features) = (run[0], rows.dims()[1]);
        let piece = rows.clone().narrow(0, first, run.len());
        store = store.slice_assign([start..start + run.len(), 0..features], piece);
    }
    store
}

#[backend_extension(Flex, Autodiff)]
pub trait RowStoreOp: Backend {
    fn write_rows(store: FloatTensor<Self>, rows: FloatTensor<Self>, indices: Vec<usize>) -> FloatTensor<Self>;
}

impl RowStoreOp for Flex {
    fn write_rows(store: FlexTensor, rows: FlexTensor, indices: Vec<usize>) -> FlexTensor {
        let (mut store, rows) = (contiguous(store), contiguous(rows));
        let [_, features] = shape2(&rows);
        let destination = store.storage_mut::<f32>();
        for (row, index) in elements(&rows).chunks(features).zip(indices) {
            destination[index * features..][..features].copy_from_slice(row);
        }
        store
    }
}

impl<C: CheckpointStrategy> RowStoreOp for Autodiff<Flex, C> {
    fn write_rows(store: FloatTensor<Self>, rows: FloatTensor<Self>, indices: Vec<usize>) -> FloatTensor<Self> {
        Self::from_inner(Flex::write_rows(store.into_primitive(), rows.into_primitive(), indices))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::testing::{assert_close, random};

    #[test]
    fn only_the_named_rows_change() {
        let device = Device::flex();
        let store = Tensor::<2>::zeros([4, 2], &device);
        let rows = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device);
        let store = write_rows(store, rows, vec![3, 1]);
        assert_eq!(store.into_data().try_to_vec::<f32>().unwrap(), [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn the_reference_writes_the_same_rows() {
        let (store, rows) = (random([9, 3], 1), random([5, 3], 2));
        let indices = vec![2, 3, 4, 8, 0];
        let ours = write_rows(store.clone(), rows.clone(), indices.clone());
        assert_close(reference(store, rows, &indices), ours, 0.0, "rows");
    }
}
