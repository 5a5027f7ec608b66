//! What the op tests share: reproducible inputs and comparison with a stated tolerance.

use burn::tensor::{Device, Tensor, TensorData};

/// Values in about −2…2 that depend on `seed` only, on the device that tracks gradients.
pub(crate) fn random<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 2.0
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
}

/// A leaf of its own with the same values, whose gradient is kept.
pub(crate) fn track<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().detach().require_grad()
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// The transpose of rows of so many columns.
pub(crate) fn transposed(numbers: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| numbers.iter().skip(col).step_by(cols).copied()).collect()
}

/// Fails where the two differ by more than `tolerance` relative to the largest magnitude of the expected one.
pub(crate) fn assert_close<const D: usize>(got: Tensor<D>, expected: Tensor<D>, tolerance: f32, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (values(got), values(expected));
    let largest = expected.iter().fold(1e-3f32, |largest, v| largest.max(v.abs()));
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let error = (got - expected).abs() / largest;
        assert!(error <= tolerance, "{what}: element {i} is {got}, expected {expected}");
    }
}
