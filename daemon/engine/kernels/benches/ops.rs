//! Every op beside the least time that its arithmetic and its memory traffic could take on this processor:
//! `cargo bench -p justtrain-kernels [-- FILTER]`. Shapes are SmolLM2-135M's with 600 tokens.
//!
//! The floor is measured first: multiply-adds out of registers, and reading and writing memory that no cache holds.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use justtrain_kernels::{
    Activation, Factors, Format, Heads, OutputLayer, Packed, Products, RotaryTable, Scores, Segments, Targets, Weight,
    attention, gated, linear, linear_cross_entropy, rms_norm, rotary,
};
use rayon::prelude::*;

const TOKENS: usize = 600;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const VOCABULARY: usize = 49_152;

fn main() {
    // Cargo passes `--bench`; what is left is a filter.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let floor = Floor::measure();
    println!(
        "{} threads, {}, bfloat16 by {}: {:.0} GFLOP/s in f32, {:.1} GB/s\n",
        rayon::current_num_threads(),
        justtrain_kernels::simd::level().name(),
        justtrain_kernels::bf16::Instructions::current().name(),
        floor.flops / 1e9,
        floor.bytes / 1e9,
    );
    println!("{:42} {:>9} {:>9} {:>9}  bound by", "op", "ms", "floor ms", "share");
    let bench = Bench { filter, floor };
    products(&bench);
    linears(&bench);
    element_wise(&bench);
    whole_rows(&bench);
}

/// What the processor can do, all threads together.
struct Floor {
    /// Multiplications and additions a second.
    flops: f64,
    /// Bytes read or written a second.
    bytes: f64,
}

impl Floor {
    fn measure() -> Self {
        let threads = rayon::current_num_threads();
        let rounds = 1_000_000;
        let time = best(|| {
            (0..threads).into_par_iter().for_each(|_| {
                black_box(multiply_adds(rounds));
            });
        });
        let flops = (threads * rounds * FLOPS_A_ROUND) as f64 / time.as_secs_f64();
        let (source, mut target) = (vec![1.0f32; 32 << 20], vec![0.0f32; 32 << 20]);
        let time = best(|| {
            target
                .par_chunks_mut(1 << 16)
                .zip(source.par_chunks(1 << 16))
                .for_each(|(to, from)| to.copy_from_slice(from));
        });
        Self { flops, bytes: 2.0 * size_of_val(source.as_slice()) as f64 / time.as_secs_f64() }
    }
}

/// Vectors of 16 numbers in [`multiply_adds`]: enough to hide an instruction's latency, few enough for registers.
const SUMS: usize = 6;
const FLOPS_A_ROUND: usize = 2 * 16 * SUMS;

/// As many multiply-adds as fit into a processor's time.
fn multiply_adds(rounds: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        use justtrain_kernels::simd::{Level, level};
        use std::arch::x86_64::*;

        #[target_feature(enable = "avx512f")]
        fn avx512(rounds: usize) -> f32 {
            let factor = _mm512_set1_ps(black_box(0.999));
            let mut sums = [_mm512_set1_ps(1.0); 2 * SUMS];
            for _ in 0..rounds / 2 {
                sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, factor, factor));
            }
            sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
        }

        #[target_feature(enable = "avx2,fma")]
        fn avx2(rounds: usize) -> f32 {
            let factor = _mm256_set1_ps(black_box(0.999));
            let mut sums = [_mm256_set1_ps(1.0); 2 * SUMS];
            for _ in 0..rounds {
                sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, factor, factor));
            }
            sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
        }

        match level() {
            // SAFETY: `level` returns only what the processor has.
            Level::Avx512 => return unsafe { avx512(rounds) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2(rounds) },
            Level::Scalar => {}
        }
    }
    let factor = black_box(0.999f32);
    let mut sums = [[1.0f32; 16]; SUMS];
    for _ in 0..rounds {
        sums.as_flattened_mut().iter_mut().for_each(|sum| *sum = *sum * factor + factor);
    }
    sums.as_flattened().iter().sum()
}

/// The shortest of many runs: whatever else the machine does only lengthens them.
fn best(mut run: impl FnMut()) -> Duration {
    let (start, mut shortest, mut runs) = (Instant::now(), Duration::MAX, 0);
    while runs < 5 || (start.elapsed() < Duration::from_millis(1500) && runs < 200) {
        let start = Instant::now();
        run();
        shortest = shortest.min(start.elapsed());
        runs += 1;
    }
    shortest
}

struct Bench {
    filter: String,
    floor: Floor,
}

impl Bench {
    /// One line of the table; `flops` and `floats` are what the op cannot do without: operations, and numbers that go
    /// through memory.
    fn run(&self, name: &str, flops: usize, floats: usize, run: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let time = best(run).as_secs_f64();
        let (compute, memory) = (flops as f64 / self.floor.flops, (floats * 4) as f64 / self.floor.bytes);
        let floor = compute.max(memory);
        let bound = if compute > memory { "arithmetic" } else { "memory" };
        let share = 100.0 * floor / time;
        println!("{name:42} {:>9.3} {:>9.3} {share:>8.0}%  {bound}", time * 1e3, floor * 1e3);
    }
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|index| (index as f32 * 0.618).fract() - 0.5).collect()
}

fn tensor<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let len = shape.iter().product();
    Tensor::from_data(TensorData::new(numbers(len), shape), &Device::flex().autodiff())
}

/// The `gemm` crate alone: the products of a step, weights transposed as a forward needs them.
fn products(bench: &Bench) {
    let shapes = [
        [TOKENS, HIDDEN, INTERMEDIATE],
        [TOKENS, HIDDEN, HIDDEN],
        [TOKENS, INTERMEDIATE, HIDDEN],
        [300, HIDDEN, VOCABULARY],
        [TOKENS, HIDDEN, 16],
        [TOKENS, 16, HIDDEN],
    ];
    for [rows, inner, cols] in shapes {
        let (a, b, mut c) = (numbers(rows * inner), numbers(cols * inner), vec![0.0; rows * cols]);
        for (threads, parallelism) in [(1, gemm::Parallelism::None), (0, gemm::Parallelism::Rayon(0))] {
            let flops = 2 * rows * inner * cols * if threads == 1 { rayon::current_num_threads() } else { 1 };
            let name =
                format!("gemm {rows}x{inner}x{cols} {}", if threads == 1 { "one thread" } else { "all threads" });
            // SAFETY: the strides describe the three buffers.
            bench.run(&name, flops, rows * inner + inner * cols + rows * cols, || unsafe {
                gemm::gemm(
                    rows,
                    cols,
                    inner,
                    c.as_mut_ptr(),
                    1,
                    cols as isize,
                    false,
                    a.as_ptr(),
                    1,
                    inner as isize,
                    b.as_ptr(),
                    inner as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            });
        }
    }
}

/// Forward, and forward with backward, of a layer in each of its forms.
fn linears(bench: &Bench) {
    let (inputs, outputs, rank) = (HIDDEN, INTERMEDIATE, 16);
    let (x, weights) = (tensor([TOKENS, inputs]), numbers(outputs * inputs));
    let packed = |format| Weight::from(Packed::from_f32(format, &weights, [outputs, inputs]));
    let nf4 = Format::Nf4 { double_quantization: true };
    let forms: [(&str, Weight); 6] = [
        ("f32", tensor([outputs, inputs]).into()),
        ("bf16", packed(Format::Bf16)),
        ("int8", packed(Format::Int8)),
        ("nf4", packed(nf4)),
        ("bf16 in bf16", packed(Format::Bf16).with_products(Products::Bf16)),
        ("nf4 in bf16", packed(nf4).with_products(Products::Bf16)),
    ];
    let base = 2 * TOKENS * inputs * outputs;
    let floats = TOKENS * (inputs + outputs) + inputs * outputs;
    let factors = || Factors {
        a: tensor([rank, inputs]).require_grad(),
        b: tensor([outputs, rank]).require_grad(),
        scale: 1.0,
        dropout: None,
    };
    let lora = 2 * TOKENS * rank * (inputs + outputs);
    for (form, weight) in &forms {
        bench.run(&format!("linear {form}, forward"), base, floats, || {
            black_box(linear(x.clone(), weight, None));
        });
        let (factors, x) = (factors(), x.clone().require_grad());
        bench.run(&format!("linear {form} + LoRA 16, with backward"), 2 * base + 3 * lora, 2 * floats, || {
            black_box(linear(x.clone(), weight, Some(factors.clone())).sum().backward());
        });
    }
}

fn element_wise(bench: &Bench) {
    let (gate, up) = (tensor([TOKENS, INTERMEDIATE]), tensor([TOKENS, INTERMEDIATE]));
    bench.run("swiglu, forward", 0, 3 * TOKENS * INTERMEDIATE, || {
        black_box(gated(gate.clone(), up.clone(), Activation::Silu, Products::F32));
    });
    let (x, weight) = (tensor([TOKENS, HIDDEN]), tensor([HIDDEN]));
    bench.run("rms_norm, forward", 0, 2 * TOKENS * HIDDEN, || {
        black_box(rms_norm(x.clone(), weight.clone(), 1e-5));
    });
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let frequencies: Vec<f32> = (0..32).map(|i| 1e4f32.powf(-i as f32 / 32.0)).collect();
    let table = Arc::new(RotaryTable::new(&positions, &frequencies));
    bench.run("rotary, forward", 0, 2 * TOKENS * HIDDEN, || {
        black_box(rotary(x.clone(), table.clone()));
    });
}

fn whole_rows(bench: &Bench) {
    let heads = Heads { query: 9, key_value: 3, dim: 64 };
    let (q, k, v) = (tensor([TOKENS, 576]), tensor([TOKENS, 192]), tensor([TOKENS, 192]));
    // Two products over the half of the scores that is seen.
    let scores = |len: usize| TOKENS * len / 2 * heads.query;
    for (name, len) in [("one sequence of 600", 600), ("8 sequences of 75", 75)] {
        let starts: Vec<usize> = (0..=TOKENS / len).map(|index| index * len).collect();
        let segments = Arc::new(Segments::packed(&starts));
        bench.run(&format!("attention, {name}, forward"), 4 * scores(len) * heads.dim, 2 * TOKENS * 768, || {
            black_box(attention(q.clone(), k.clone(), v.clone(), heads, segments.clone(), Scores::scaled(0.125)));
        });
        let [q, k, v] = [&q, &k, &v].map(|x| x.clone().require_grad());
        // Five more products in the backward.
        bench.run(&format!("attention, {name}, with backward"), 14 * scores(len) * heads.dim, 6 * TOKENS * 768, || {
            let output = attention(q.clone(), k.clone(), v.clone(), heads, segments.clone(), Scores::scaled(0.125));
            black_box(output.sum().backward());
        });
    }
    let hidden = tensor([TOKENS, HIDDEN]).require_grad();
    let output = OutputLayer::from(Weight::from(tensor([VOCABULARY, HIDDEN])));
    let targets = 300;
    let rows = (0..targets).map(|index| 2 * index).collect();
    let targets_of_300 = Arc::new(Targets { rows, tokens: (0..targets as u32).collect(), weights: None });
    let product = targets * HIDDEN * VOCABULARY;
    bench.run("linear_cross_entropy, 300 targets, both", 4 * product, 2 * HIDDEN * VOCABULARY, || {
        black_box(linear_cross_entropy(hidden.clone(), &output, targets_of_300.clone()).backward());
    });
}
