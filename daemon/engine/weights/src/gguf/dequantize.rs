//! Decodes blocks of quantised numbers to `f32`, equal to llama.cpp's `gguf` package to the last bit
//! (`gguf-py/gguf/quants.py`; layouts in `ggml-common.h`).

use half::{bf16, f16};
use rayon::prelude::*;

use super::TensorType;

/// Decodes `bytes` into `output`, blocks in parallel.
///
/// # Panics
/// When the lengths do not belong together; [`super::Gguf::open`] has checked them for every tensor of a file.
pub fn dequantize(tensor_type: TensorType, bytes: &[u8], output: &mut [f32]) {
    let (block_len, block_bytes) = (tensor_type.block_len(), tensor_type.block_bytes());
    assert_eq!(output.len() % block_len, 0);
    assert_eq!(output.len() / block_len * block_bytes, bytes.len());
    // About 16 thousand numbers a task.
    let blocks = (16 * 1024 / block_len).max(1);
    output
        .par_chunks_mut(blocks * block_len)
        .zip(bytes.par_chunks(blocks * block_bytes))
        .for_each(|(output, bytes)| decode_blocks(tensor_type, bytes, output));
}

/// As [`dequantize`] on the calling thread. Inlined, so that a caller compiled for wider vectors decodes with them.
#[inline(always)]
pub fn decode_blocks(tensor_type: TensorType, bytes: &[u8], output: &mut [f32]) {
    #[inline(always)]
    fn each(tensor_type: TensorType, bytes: &[u8], output: &mut [f32], decode: impl Fn(&[u8], &mut [f32])) {
        let blocks = bytes.chunks_exact(tensor_type.block_bytes());
        for (output, block) in output.chunks_exact_mut(tensor_type.block_len()).zip(blocks) {
            decode(block, output);
        }
    }
    match tensor_type {
        TensorType::F32 => each(tensor_type, bytes, output, f32_block),
        TensorType::F16 => each(tensor_type, bytes, output, f16_block),
        TensorType::BF16 => each(tensor_type, bytes, output, bf16_block),
        TensorType::Q8_0 => each(tensor_type, bytes, output, q8_0_block),
        TensorType::Q4_0 => each(tensor_type, bytes, output, q4_0_block),
        TensorType::Q4_1 => each(tensor_type, bytes, output, q4_1_block),
        TensorType::Q5_0 => each(tensor_type, bytes, output, q5_0_block),
        TensorType::Q5_1 => each(tensor_type, bytes, output, q5_1_block),
        TensorType::Q2_K => each(tensor_type, bytes, output, q2_k_block),
        TensorType::Q3_K => each(tensor_type, bytes, output, q3_k_block),
        TensorType::Q4_K => each(tensor_type, bytes, output, q4_k_block),
        TensorType::Q5_K => each(tensor_type, bytes, output, q5_k_block),
        TensorType::Q6_K => each(tensor_type, bytes, output, q6_k_block),
        TensorType::IQ4_NL => each(tensor_type, bytes, output, iq4_nl_block),
        TensorType::IQ4_XS => each(tensor_type, bytes, output, iq4_xs_block),
    }
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline(always)]
fn f32_block(block: &[u8], output: &mut [f32]) {
    output[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

#[inline(always)]
fn f16_block(block: &[u8], output: &mut [f32]) {
    output[0] = half_at(block, 0);
}

#[inline(always)]
fn bf16_block(block: &[u8], output: &mut [f32]) {
    output[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}

/// A scale, then 32 signed bytes.
#[inline(always)]
fn q8_0_block(block: &[u8], output: &mut [f32]) {
    let scale = half_at(block, 0);
    for (output, &q) in output.iter_mut().zip(&block[2..]) {
        *output = f32::from(q as i8) * scale;
    }
}

/// A scale, then 32 nibbles around 8: the low ones are the first half.
#[inline(always)]
fn q4_0_block(block: &[u8], output: &mut [f32]) {
    let scale = half_at(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        output[i] = f32::from((q & 15) as i8 - 8) * scale;
        output[i + 16] = f32::from((q >> 4) as i8 - 8) * scale;
    }
}

/// A scale and a minimum, then 32 nibbles.
#[inline(always)]
fn q4_1_block(block: &[u8], output: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        output[i] = f32::from(q & 15) * scale + min;
        output[i + 16] = f32::from(q >> 4) * scale + min;
    }
}

/// The fifth bit of number `i` out of 32, in its place.
#[inline(always)]
fn fifth_bit(bits: &[u8], i: usize) -> u8 {
    (bits[i / 8] >> (i % 8) & 1) << 4
}

/// As Q4_0 with a fifth bit for each number, around 16.
#[inline(always)]
fn q5_0_block(block: &[u8], output: &mut [f32]) {
    let scale = half_at(block, 0);
    let (high, nibbles) = (&block[2..6], &block[6..]);
    for (i, &q) in nibbles.iter().enumerate() {
        output[i] = f32::from((q & 15 | fifth_bit(high, i)) as i8 - 16) * scale;
        output[i + 16] = f32::from((q >> 4 | fifth_bit(high, i + 16)) as i8 - 16) * scale;
    }
}

/// As Q4_1 with a fifth bit for each number.
#[inline(always)]
fn q5_1_block(block: &[u8], output: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    let (high, nibbles) = (&block[4..8], &block[8..]);
    for (i, &q) in nibbles.iter().enumerate() {
        output[i] = f32::from(q & 15 | fifth_bit(high, i)) * scale + min;
        output[i + 16] = f32::from(q >> 4 | fifth_bit(high, i + 16)) * scale + min;
    }
}

/// Number `i` of 256 that have two bits each: 128 share 32 bytes, in four runs of 32.
#[inline(always)]
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    let (part, run, at) = (i / 128, i % 128 / 32, i % 32);
    bytes[part * 32 + at] >> (run * 2) & 3
}

/// Sixteen sub-blocks of 16 numbers of 2 bits, each with a scale and a minimum of 4 bits.
#[inline(always)]
fn q2_k_block(block: &[u8], output: &mut [f32]) {
    let (scales, numbers) = (&block[..16], &block[16..80]);
    let (scale, min) = (half_at(block, 80), half_at(block, 82));
    for (i, output) in output.iter_mut().enumerate() {
        let packed = scales[i / 16];
        *output = scale * f32::from(packed & 15) * f32::from(two_bits(numbers, i)) - min * f32::from(packed >> 4);
    }
}

/// Sixteen sub-blocks of 16 numbers of 3 bits around 4, each with a scale of 6 bits around 32.
#[inline(always)]
fn q3_k_block(block: &[u8], output: &mut [f32]) {
    let (high, numbers, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for (j, output) in output.chunks_mut(16).enumerate() {
        let low_scale = packed[j % 8] >> (j / 8 * 4) & 15;
        let high_scale = packed[8 + j % 4] >> (j / 4 * 2) & 3;
        let sub_scale = scale * f32::from((low_scale | high_scale << 4) as i8 - 32);
        for (at, output) in output.iter_mut().enumerate() {
            let i = j * 16 + at;
            let third = high[i % 32] >> (i / 32) & 1;
            *output = sub_scale * f32::from((two_bits(numbers, i) | third << 2) as i8 - 4);
        }
    }
}

/// The 6-bit scale and minimum of sub-block `j` out of 12 packed bytes.
#[inline(always)]
fn k_scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

/// Eight sub-blocks of 32 nibbles, each with a scale and a minimum.
#[inline(always)]
fn q4_k_block(block: &[u8], output: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    let (packed, nibbles) = (&block[4..16], &block[16..]);
    for (j, output) in output.chunks_mut(32).enumerate() {
        let (sub_scale, sub_min) = k_scale_min(packed, j);
        let (d, m) = (scale * sub_scale, min * sub_min);
        for (output, &q) in output.iter_mut().zip(&nibbles[j / 2 * 32..]) {
            *output = d * f32::from(if j % 2 == 0 { q & 15 } else { q >> 4 }) - m;
        }
    }
}

/// As Q4_K with a fifth bit for each number.
#[inline(always)]
fn q5_k_block(block: &[u8], output: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    let (packed, high, nibbles) = (&block[4..16], &block[16..48], &block[48..]);
    for (j, output) in output.chunks_mut(32).enumerate() {
        let (sub_scale, sub_min) = k_scale_min(packed, j);
        let (d, m) = (scale * sub_scale, min * sub_min);
        for ((output, &q), &high) in output.iter_mut().zip(&nibbles[j / 2 * 32..]).zip(high) {
            let low = if j % 2 == 0 { q & 15 } else { q >> 4 };
            *output = d * f32::from(low | (((high >> j) & 1) << 4)) - m;
        }
    }
}

/// Sixteen sub-blocks of 16 numbers of 6 bits around 32, each with a signed scale.
#[inline(always)]
fn q6_k_block(block: &[u8], output: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (i, output) in output.iter_mut().enumerate() {
        // 128 numbers share 64 low bytes and 32 high bytes: four runs of 32.
        let (part, run, at) = (i / 128, i % 128 / 32, i % 32);
        let low = low[part * 64 + run % 2 * 32 + at] >> (run / 2 * 4) & 15;
        let high = high[part * 32 + at] >> (run * 2) & 3;
        let q = (low | high << 4) as i8 - 32;
        *output = scale * f32::from(scales[i / 16] as i8) * f32::from(q);
    }
}

/// What the sixteen nibbles of IQ4_NL and IQ4_XS stand for (`kvalues_iq4nl`).
const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 nibbles that stand for unevenly spaced values: the low ones are the first half.
#[inline(always)]
fn iq4_values(scale: f32, nibbles: &[u8], output: &mut [f32]) {
    for (i, &q) in nibbles.iter().enumerate() {
        output[i] = scale * f32::from(IQ4_VALUES[usize::from(q & 15)]);
        output[i + 16] = scale * f32::from(IQ4_VALUES[usize::from(q >> 4)]);
    }
}

/// A scale, then 32 nibbles of unevenly spaced values.
#[inline(always)]
fn iq4_nl_block(block: &[u8], output: &mut [f32]) {
    iq4_values(half_at(block, 0), &block[2..], output);
}

/// Eight sub-blocks as in IQ4_NL, each with a scale of 6 bits around 32.
#[inline(always)]
fn iq4_xs_block(block: &[u8], output: &mut [f32]) {
    let scale = half_at(block, 0);
    let high_scales = u16::from_le_bytes([block[2], block[3]]);
    let (low_scales, nibbles) = (&block[4..8], &block[8..]);
    for (j, (output, nibbles)) in output.chunks_mut(32).zip(nibbles.chunks(16)).enumerate() {
        let low = low_scales[j / 2] >> (j % 2 * 4) & 15;
        let high = (high_scales >> (j * 2) & 3) as u8;
        iq4_values(scale * f32::from((low | high << 4) as i8 - 32), nibbles, output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::SafetensorsFile;

    /// Random blocks of each type and what llama.cpp's `gguf` package makes of them (`scripts/golden/gguf_blocks.py`).
    #[test]
    fn every_type_equals_the_gguf_package_to_the_last_bit() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf_blocks.safetensors");
        let goldens = SafetensorsFile::open(&path).unwrap();
        for tensor_type in TensorType::ALL {
            let bytes = goldens.bytes(&format!("{tensor_type}.bytes")).unwrap();
            let expected = goldens.read_f32(&format!("{tensor_type}.values")).unwrap();
            let mut values = vec![0.0; expected.len()];
            dequantize(tensor_type, bytes, &mut values);
            for (i, (got, want)) in values.iter().zip(&expected).enumerate() {
                assert_eq!(got.to_bits(), want.to_bits(), "{tensor_type} element {i}: {got} instead of {want}");
            }
        }
    }
}
