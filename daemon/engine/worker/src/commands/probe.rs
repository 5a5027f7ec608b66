//! A real matmul on the device, checked against a scalar loop.

use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use justtrain_model::device;
use justtrain_model::kernels::device::gpu_name;
use justtrain_model::kernels::{Products, Weight, bf16, linear, simd};
use justtrain_worker_api::{Bf16Report, DevicePick, Failure, FailureReason, GpuReport, Outcome, ProbeReport};

const SIZE: usize = 768;

pub(super) fn run(device: DevicePick) -> Result<Outcome, Failure> {
    let (name, device) = device::open(device).map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    // Numbers that bfloat16 has too, so that both formats have one right result.
    let number = |angle: f32| f32::from_bits(angle.sin().to_bits() & 0xffff_0000);
    let matrix = |seed: f32| {
        let values: Vec<f32> = (0..SIZE * SIZE).map(|i| number(i as f32 * seed)).collect();
        (values.clone(), Tensor::<2>::from_data(TensorData::new(values, [SIZE, SIZE]), &device))
    };
    let ((x, x_tensor), (w, w_tensor)) = (matrix(0.37), matrix(0.11));
    // One row and one column through the whole result.
    let expected = |row: usize, col: usize| {
        (0..SIZE).map(|i| f64::from(x[row * SIZE + i]) * f64::from(w[col * SIZE + i])).sum::<f64>()
    };
    let places = (0..SIZE).flat_map(|i| [(7, i), (i, 13)]);
    let expected: Vec<(usize, f64)> = places.map(|(row, col)| (row * SIZE + col, expected(row, col))).collect();
    // GFLOP/s, and the largest error.
    let measure = |products| {
        let weight = Weight::from(w_tensor.clone()).with_products(products);
        let (mut best, mut product) = (f64::INFINITY, Vec::new());
        // The first run starts threads and reads memory for the first time.
        for _ in 0..4 {
            let start = Instant::now();
            let output = linear(x_tensor.clone(), &weight, None);
            // A GPU is only asked so far.
            let _ = device.sync();
            best = best.min(start.elapsed().as_secs_f64());
            product = output.into_data().try_into_vec::<f32>().expect("products are f32");
        }
        let errors = expected.iter().map(|&(at, want)| (f64::from(product[at]) - want).abs());
        (2.0 * (SIZE * SIZE * SIZE) as f64 / best / 1e9, errors.fold(0.0, f64::max))
    };
    let gpu = gpu_name(&device).map(|(name, target)| GpuReport { name, target });
    let (gflops, mut max_error) = measure(Products::F32);
    let bf16 = (gpu.is_none() && bf16::available()).then(|| {
        let (gflops, error) = measure(Products::Bf16);
        max_error = max_error.max(error);
        Bf16Report { instructions: bf16::Instructions::current().name().to_owned(), gflops }
    });
    let simd = simd::level().name().to_owned();
    Ok(Outcome::Probed(ProbeReport { device: name.to_string(), gpu, simd, gflops, bf16, max_error }))
}
