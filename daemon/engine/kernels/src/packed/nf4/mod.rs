//! NormalFloat of 4 bits in blocks of 64 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), bit for bit as bitsandbytes
//! defines it (`backends/default/ops.py`, `functional.py: create_dynamic_map, quantize_4bit`).

mod decode;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rayon::prelude::*;

use super::{Form, largest_magnitude};
use crate::blockwise::{Blockwise, dynamic_map};
use crate::simd::simd_fn;

/// Weights that share a scale.
const BLOCK: usize = 64;
/// Scales that share a scale of their own, where they are quantised too.
const SCALE_BLOCK: usize = 256;

/// The 16 numbers that a code of 4 bits stands for, of a block whose largest magnitude is 1.
const CODES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The middles between neighbouring codes.
const BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut code = 0;
    while code < 15 {
        bounds[code] = (CODES[code] + CODES[code + 1]) / 2.0;
        code += 1;
    }
    bounds
};

/// A row-major matrix as codes and scales.
#[derive(Debug, Clone, PartialEq)]
struct Nf4 {
    /// Two codes a byte, the earlier one in the high half.
    codes: Vec<u8>,
    scales: Scales,
}

/// One scale for each block.
#[derive(Debug, Clone, PartialEq)]
enum Scales {
    Plain(Vec<f32>),
    /// Double quantisation: what is left of the mean, in 8 bits.
    Double {
        scales: Blockwise,
        offset: f32,
    },
}

impl Scales {
    /// bitsandbytes takes the mean by a sum in `f32`, whose last bits depend on its number of threads and on the width
    /// of the vectors; this is the number that it approaches.
    fn double(scales: &[f32]) -> Self {
        let sum: f64 = scales.iter().map(|&scale| f64::from(scale)).sum();
        Self::double_around(scales, (sum / scales.len().max(1) as f64) as f32)
    }

    fn double_around(scales: &[f32], offset: f32) -> Self {
        let centred: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        Self::Double { scales: Blockwise::quantize(&centred, dynamic_map(true), SCALE_BLOCK), offset }
    }

    #[inline]
    fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[block],
            Self::Double { scales, offset } => scales.get(block) + offset,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len() * 4,
            Self::Double { scales, .. } => scales.bytes() + 4,
        }
    }
}

pub(super) struct Builder {
    codes: Vec<u8>,
    scales: Vec<f32>,
    double_quantization: bool,
}

impl Builder {
    pub(super) fn new(len: usize, double_quantization: bool) -> Self {
        let (codes, scales) = (Vec::with_capacity(len.div_ceil(2)), Vec::with_capacity(len.div_ceil(BLOCK)));
        Self { codes, scales, double_quantization }
    }
}

impl super::Builder for Builder {
    fn push(&mut self, weights: &[f32]) {
        let (codes, scales) = (self.codes.len(), self.scales.len());
        self.codes.resize(codes + weights.len().div_ceil(2), 0);
        self.scales.resize(scales + weights.len().div_ceil(BLOCK), 0.0);
        let blocks = self.codes[codes..].par_chunks_mut(BLOCK / 2).zip(weights.par_chunks(BLOCK));
        let blocks = blocks.zip(&mut self.scales[scales..]).with_min_len(64);
        blocks.for_each(|((codes, weights), scale)| *scale = quantize(weights, codes));
    }

    fn finish(self: Box<Self>) -> Arc<dyn Form> {
        let scales = if self.double_quantization { Scales::double(&self.scales) } else { Scales::Plain(self.scales) };
        Arc::new(Nf4 { codes: self.codes, scales })
    }
}

impl Form for Nf4 {
    fn decode(&self, start: usize, output: &mut [f32]) {
        let (mut block, at) = (start / BLOCK, start % BLOCK);
        let mut rest = output;
        if at > 0 {
            let (now, later) = rest.split_at_mut(rest.len().min(BLOCK - at));
            self.decode_part(block, at, now);
            block += 1;
            rest = later;
        }
        // Scales of 16 blocks at a time: 1,024 numbers.
        let mut scales = [0.0; 16];
        while rest.len() >= BLOCK {
            let count = (rest.len() / BLOCK).min(scales.len());
            let (now, later) = rest.split_at_mut(count * BLOCK);
            for (index, scale) in scales[..count].iter_mut().enumerate() {
                *scale = self.scales.get(block + index);
            }
            decode::blocks(&self.codes[block * BLOCK / 2..][..now.len() / 2], &scales[..count], now);
            block += count;
            rest = later;
        }
        if !rest.is_empty() {
            self.decode_part(block, 0, rest);
        }
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }

    #[cfg(feature = "gpu")]
    fn upload(&self, len: usize, device: &burn::tensor::Device) -> Box<dyn super::on_gpu::OnGpu> {
        let scales = (0..len.div_ceil(BLOCK)).map(|block| self.scales.get(block)).collect();
        Box::new(super::on_gpu::Codes::new(&self.codes, CODES, BLOCK, scales, len, device))
    }
}

/// Bytes in memory of so many weights.
pub(super) fn bytes(len: usize, double_quantization: bool) -> usize {
    let blocks = len.div_ceil(BLOCK);
    let scales = if double_quantization { blocks + 4 * blocks.div_ceil(SCALE_BLOCK) + 4 } else { 4 * blocks };
    len.div_ceil(2) + scales
}

impl Nf4 {
    /// Part of one block, from its number `at` on.
    fn decode_part(&self, block: usize, at: usize, output: &mut [f32]) {
        let scale = self.scales.get(block);
        for (index, output) in (block * BLOCK + at..).zip(output) {
            *output = CODES[usize::from(self.codes[index / 2] >> (4 * (1 - index % 2)) & 15)] * scale;
        }
    }
}

simd_fn! {
    /// Writes the nearest codes of a block, two a byte, and returns its scale; half-way is the lower code.
    fn quantize(weights: &[f32], codes: &mut [u8]) -> f32 {
        let _ = FMA;
        let whole = weights.len() == BLOCK;
        let mut scale = largest_magnitude(weights);
        // What is missing has the code of 0, as bitsandbytes pads.
        let mut scaled = [0.0f32; BLOCK];
        scaled[..weights.len()].copy_from_slice(weights);
        if whole {
            let inverse = 1.0 / scale.max(SMALLEST);
            scaled.iter_mut().for_each(|weight| *weight *= inverse);
        } else {
            if scale < SMALLEST {
                scale = SMALLEST;
            }
            scaled.iter_mut().for_each(|weight| *weight /= scale);
        }
        let mut nearest = [0i32; BLOCK];
        for (code, weight) in nearest.iter_mut().zip(scaled) {
            *code = BOUNDS.iter().map(|&bound| i32::from(weight > bound)).sum();
        }
        for (byte, pair) in codes.iter_mut().zip(nearest.as_chunks::<2>().0) {
            *byte = (pair[0] << 4 | pair[1]) as u8;
        }
        scale
    }
}

/// A block of zeros is divided by this.
const SMALLEST: f32 = 1e-38;
