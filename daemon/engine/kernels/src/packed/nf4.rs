//! NormalFloat of 4 bits in blocks of 64 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), bit for bit as bitsandbytes
//! defines it (`backends/default/ops.py`, `functional.py: create_dynamic_map, quantize_4bit`).

use rayon::prelude::*;

use super::Form;
use crate::blockwise::{Blockwise, dynamic_map};

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

/// A row-major matrix as codes and scales.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Nf4 {
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
    #[inline]
    fn get(&self, block: usize) -> f32 {
        match self {
            Scales::Plain(scales) => scales[block],
            Scales::Double { scales, offset } => scales.get(block) + offset,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Scales::Plain(scales) => scales.len() * 4,
            Scales::Double { scales, .. } => scales.bytes() + 4,
        }
    }
}

impl Nf4 {
    pub(super) fn quantize(weights: &[f32], double_quantization: bool) -> Self {
        let blocks = weights.len().div_ceil(BLOCK);
        let (mut codes, mut scales) = (vec![0u8; weights.len().div_ceil(2)], vec![0.0f32; blocks]);
        codes.par_chunks_mut(BLOCK / 2).zip(weights.par_chunks(BLOCK)).zip(&mut scales).for_each(
            |((codes, weights), scale)| {
                *scale = weights.iter().fold(0.0, |largest, weight| weight.abs().max(largest));
                let inverse = 1.0 / scale.max(1e-38);
                let code = |weight: f32| nearest((weight * inverse).clamp(-1.0, 1.0));
                for (byte, pair) in codes.iter_mut().zip(weights.chunks(2)) {
                    // A missing last weight is the code of 0, as bitsandbytes pads.
                    *byte = code(pair[0]) << 4 | pair.get(1).map_or(7, |&weight| code(weight));
                }
            },
        );
        let scales = if double_quantization { double(&scales) } else { Scales::Plain(scales) };
        Self { codes, scales }
    }
}

impl Form for Nf4 {
    fn decode(&self, start: usize, output: &mut [f32]) {
        let mut at = start;
        let mut rest = output;
        while !rest.is_empty() {
            let block = at / BLOCK;
            let (now, later) = rest.split_at_mut(rest.len().min((block + 1) * BLOCK - at));
            let scale = self.scales.get(block);
            let table = CODES.map(|code| code * scale);
            if at.is_multiple_of(2) && now.len().is_multiple_of(2) {
                for (pair, byte) in now.as_chunks_mut::<2>().0.iter_mut().zip(&self.codes[at / 2..]) {
                    *pair = [table[usize::from(byte >> 4)], table[usize::from(byte & 15)]];
                }
            } else {
                for (index, weight) in (at..).zip(now.iter_mut()) {
                    *weight = table[usize::from(self.codes[index / 2] >> (4 * (1 - index % 2)) & 15)];
                }
            }
            at += now.len();
            rest = later;
        }
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }
}

/// The nearest code; half-way is the lower one.
fn nearest(weight: f32) -> u8 {
    (1..16).map(|code| u8::from(weight > (CODES[code - 1] + CODES[code]) / 2.0)).sum()
}

fn double(scales: &[f32]) -> Scales {
    let offset = (scales.iter().map(|&scale| f64::from(scale)).sum::<f64>() / scales.len() as f64) as f32;
    let centred: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
    Scales::Double { scales: Blockwise::quantize(&centred, dynamic_map(true), SCALE_BLOCK), offset }
}
