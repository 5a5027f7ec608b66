//! A real matmul on the device, checked against a scalar loop.

use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use justtrain_model::device;
use justtrain_model::kernels::device::gpu_name;
use justtrain_model::kernels::{linear, simd};
use justtrain_worker_api::{DevicePick, Failure, FailureReason, GpuReport, Outcome, ProbeReport};

const SIZE: usize = 768;

pub(super) fn run(device: DevicePick) -> Result<Outcome, Failure> {
    let (name, device) = device::open(device).map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    let matrix = |seed: f32| {
        let values: Vec<f32> = (0..SIZE * SIZE).map(|i| (i as f32 * seed).sin()).collect();
        (values.clone(), Tensor::<2>::from_data(TensorData::new(values, [SIZE, SIZE]), &device))
    };
    let ((x, x_tensor), (w, w_tensor)) = (matrix(0.37), matrix(0.11));
    let mut best = f64::INFINITY;
    let mut product = Vec::new();
    // The first run starts threads and reads memory for the first time.
    for _ in 0..4 {
        let start = Instant::now();
        let output = linear(x_tensor.clone(), &w_tensor.clone().into(), None);
        // A GPU is only asked so far.
        let _ = device.sync();
        best = best.min(start.elapsed().as_secs_f64());
        product = output.into_data().try_into_vec::<f32>().expect("products are f32");
    }
    // One row and one column through the whole result.
    let expected = |row: usize, col: usize| {
        (0..SIZE).map(|i| f64::from(x[row * SIZE + i]) * f64::from(w[col * SIZE + i])).sum::<f64>()
    };
    let places = (0..SIZE).flat_map(|i| [(7, i), (i, 13)]);
    let max_error =
        places.map(|(row, col)| (f64::from(product[row * SIZE + col]) - expected(row, col)).abs()).fold(0.0, f64::max);
    Ok(Outcome::Probed(ProbeReport {
        device: name.to_string(),
        gpu: gpu_name(&device).map(|(name, target)| GpuReport { name, target }),
        simd: simd::level().name().to_owned(),
        gflops: 2.0 * (SIZE * SIZE * SIZE) as f64 / best / 1e9,
        max_error,
    }))
}
