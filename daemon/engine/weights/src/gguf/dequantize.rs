//! Decodes blocks of quantised numbers to `f32`, equal to llama.cpp's `gguf` package to the last bit
//! (`gguf-py/gguf/quants.py`; layouts in `ggml-common.h`).

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

/// As [`dequantize`] on the calling thread. Inlined, so that a caller compiled for wider vectors decodes with them; lengths are
/// constant and nothing branches, so that it does.
#[inline(always)]
pub fn decode_blocks(tensor_type: TensorType, bytes: &[u8], output: &mut [f32]) {
    #[inline(always)]
    fn each<const BYTES: usize, const LEN: usize>(
        bytes: &[u8],
        output: &mut [f32],
        decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
    ) {
        let (output, blocks) = (output.as_chunks_mut::<LEN>().0, bytes.as_chunks::<BYTES>().0);
        output.iter_mut().zip(blocks).for_each(|(output, block)| decode(block, output));
    }
    match tensor_type {
        TensorType::F32 => each(bytes, output, |&block, output: &mut [f32; 1]| output[0] = f32::from_le_bytes(block)),
        TensorType::F16 => each(bytes, output, |block: &[u8; 2], output: &mut [f32; 1]| output[0] = half_at(block, 0)),
        TensorType::BF16 => each(bytes, output, bf16_block),
        TensorType::Q8_0 => each(bytes, output, q8_0_block),
        TensorType::Q4_0 => each(bytes, output, q4_0_block),
        TensorType::Q4_1 => each(bytes, output, q4_1_block),
        TensorType::Q5_0 => each(bytes, output, q5_0_block),
        TensorType::Q5_1 => each(bytes, output, q5_1_block),
        TensorType::Q2_K => each(bytes, output, q2_k_block),
        TensorType::Q3_K => each(bytes, output, q3_k_block),
        TensorType::Q4_K => each(bytes, output, q4_k_block),
        TensorType::Q5_K => each(bytes, output, q5_k_block),
        TensorType::Q6_K => each(bytes, output, q6_k_block),
        TensorType::IQ4_NL => each(bytes, output, iq4_nl_block),
        TensorType::IQ4_XS => each(bytes, output, iq4_xs_block),
    }
}

/// The number in half precision at some place.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    half_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// The number of these bits in half precision. Inlined and without a branch, so that loops over it become vectors.
#[inline(always)]
pub fn half_to_f32(bits: u16) -> f32 {
    let half = u32::from(bits);
    let (sign, magnitude) = (half << 16 & 0x8000_0000, half & 0x7fff);
    // From 0.5 to 1 numbers of 32 bits are multiples of 2⁻²⁴, as small ones of half precision are.
    let small = (f32::from_bits(0.5f32.to_bits() + magnitude) - 0.5).to_bits();
    let normal = (magnitude << 13) + (112 << 23);
    let finite = if magnitude < 0x400 { small } else { normal };
    f32::from_bits(sign | if magnitude < 0x7c00 { finite } else { magnitude << 13 | 0x7f80_0000 })
}

#[inline(always)]
fn bf16_block(block: &[u8; 2], output: &mut [f32; 1]) {
    output[0] = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
}

/// Some of a block's bytes.
#[inline(always)]
fn part<const LEN: usize>(block: &[u8], start: usize) -> &[u8; LEN] {
    block[start..].first_chunk().expect("the block is longer")
}

/// 32 numbers by their place: as many as the compiler puts into vectors. Of 16 it would make 16 times the code first.
#[inline(always)]
fn decode(output: &mut [f32; 32], number: impl Fn(usize) -> f32) {
    output.iter_mut().enumerate().for_each(|(i, output)| *output = number(i));
}

/// The nibbles of 16 bytes: the low ones, then the high ones.
#[inline(always)]
fn nibbles(block: &[u8], start: usize) -> impl Fn(usize) -> i32 {
    let bytes = part::<16>(block, start);
    let mut twice = [0; 32];
    twice.as_chunks_mut().0.fill(*bytes);
    move |i| i32::from(twice[i]) >> (i / 16 * 4) & 15
}

/// What belongs to each of 32 numbers in two sub-blocks.
#[inline(always)]
fn of_halves([low, high]: [f32; 2]) -> [f32; 32] {
    let mut each = [low; 32];
    each[16..].fill(high);
    each
}

/// Bits `shift ..` of each of 32 bytes, as many as `mask` has.
#[inline(always)]
fn bits(block: &[u8], start: usize, shift: usize, mask: i32) -> impl Fn(usize) -> i32 + '_ {
    let bytes = part::<32>(block, start);
    move |i| i32::from(bytes[i]) >> shift & mask
}

/// A scale, then 32 signed bytes.
#[inline(always)]
fn q8_0_block(block: &[u8; 34], output: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (output, &q) in output.iter_mut().zip(part::<32>(block, 2)) {
        *output = f32::from(q as i8) * scale;
    }
}

/// A scale, then 32 nibbles around 8: the low ones are the first half.
#[inline(always)]
fn q4_0_block(block: &[u8; 18], output: &mut [f32; 32]) {
    let (scale, q) = (half_at(block, 0), nibbles(block, 2));
    decode(output, |i| (q(i) - 8) as f32 * scale);
}

/// A scale and a minimum, then 32 nibbles.
#[inline(always)]
fn q4_1_block(block: &[u8; 20], output: &mut [f32; 32]) {
    let (scale, min, q) = (half_at(block, 0), half_at(block, 2), nibbles(block, 4));
    decode(output, |i| q(i) as f32 * scale + min);
}

/// The fifth bits of 32 numbers; that of number `i` in its place.
#[inline(always)]
fn fifth_bits(block: &[u8], start: usize) -> impl Fn(usize) -> i32 {
    let bits = u32::from_le_bytes(*part(block, start));
    move |i| ((bits >> i & 1) << 4) as i32
}

/// As Q4_0 with a fifth bit for each number, around 16.
#[inline(always)]
fn q5_0_block(block: &[u8; 22], output: &mut [f32; 32]) {
    let (scale, fifth, q) = (half_at(block, 0), fifth_bits(block, 2), nibbles(block, 6));
    decode(output, |i| ((q(i) | fifth(i)) - 16) as f32 * scale);
}

/// As Q4_1 with a fifth bit for each number.
#[inline(always)]
fn q5_1_block(block: &[u8; 24], output: &mut [f32; 32]) {
    let (scale, min, fifth, q) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4), nibbles(block, 8));
    decode(output, |i| (q(i) | fifth(i)) as f32 * scale + min);
}

/// Two bits of each of 32 numbers, run `run` of eight: 128 numbers share 32 bytes, in four runs.
#[inline(always)]
fn two_bits(block: &[u8], start: usize, run: usize) -> impl Fn(usize) -> i32 + '_ {
    bits(block, start + run / 4 * 32, run % 4 * 2, 3)
}

/// Sixteen sub-blocks of 16 numbers of 2 bits, each with a scale and a minimum of 4 bits.
#[inline(always)]
fn q2_k_block(block: &[u8; 84], output: &mut [f32; 256]) {
    let (scale, min) = (half_at(block, 80), half_at(block, 82));
    let packed = part::<16>(block, 0);
    let (scales, mins) = (packed.map(|sub| scale * f32::from(sub & 15)), packed.map(|sub| min * f32::from(sub >> 4)));
    for (run, output) in output.as_chunks_mut().0.iter_mut().enumerate() {
        let (q, [d, m]) =
            (two_bits(block, 16, run), [scales, mins].map(|sub| of_halves([sub[2 * run], sub[2 * run + 1]])));
        decode(output, |i| d[i] * q(i) as f32 - m[i]);
    }
}

/// Sixteen sub-blocks of 16 numbers of 3 bits around 4, each with a scale of 6 bits around 32.
#[inline(always)]
fn q3_k_block(block: &[u8; 110], output: &mut [f32; 256]) {
    let (packed, scale) = (part::<12>(block, 96), half_at(block, 108));
    let scales: [f32; 16] = std::array::from_fn(|j| {
        let low = packed[j % 8] >> (j / 8 * 4) & 15;
        let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
        scale * f32::from((low | high << 4) as i8 - 32)
    });
    for (run, output) in output.as_chunks_mut().0.iter_mut().enumerate() {
        let (q, third) = (two_bits(block, 32, run), bits(block, 0, run, 1));
        let d = of_halves([scales[2 * run], scales[2 * run + 1]]);
        decode(output, |i| d[i] * ((q(i) | third(i) << 2) - 4) as f32);
    }
}

/// The 6-bit scale and minimum of sub-block `j` out of 12 packed bytes.
#[inline(always)]
fn k_scale_min(packed: &[u8; 12], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

/// Eight sub-blocks of 32 nibbles, each with a scale and a minimum.
#[inline(always)]
fn q4_k_block(block: &[u8; 144], output: &mut [f32; 256]) {
    let (scale, min, packed) = (half_at(block, 0), half_at(block, 2), part(block, 4));
    for (j, output) in output.chunks_mut(32).enumerate() {
        let (sub_scale, sub_min) = k_scale_min(packed, j);
        let (d, m) = (scale * sub_scale, min * sub_min);
        for (output, &q) in output.iter_mut().zip(&block[16 + j / 2 * 32..]) {
            *output = d * f32::from(if j % 2 == 0 { q & 15 } else { q >> 4 }) - m;
        }
    }
}

/// As Q4_K with a fifth bit for each number.
#[inline(always)]
fn q5_k_block(block: &[u8; 176], output: &mut [f32; 256]) {
    let (scale, min, packed) = (half_at(block, 0), half_at(block, 2), part(block, 4));
    for (j, output) in output.as_chunks_mut().0.iter_mut().enumerate() {
        let (sub_scale, sub_min) = k_scale_min(packed, j);
        let (d, m) = (scale * sub_scale, min * sub_min);
        let (q, fifth) = (bits(block, 48 + j / 2 * 32, j % 2 * 4, 15), bits(block, 16, j, 1));
        decode(output, |i| d * (q(i) | fifth(i) << 4) as f32 - m);
    }
}

/// Sixteen sub-blocks of 16 numbers of 6 bits around 32, each with a signed scale.
#[inline(always)]
fn q6_k_block(block: &[u8; 210], output: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    let scales = part::<16>(block, 192).map(|sub_scale| scale * f32::from(sub_scale as i8));
    for (run, output) in output.as_chunks_mut().0.iter_mut().enumerate() {
        // 128 numbers share 64 bytes of nibbles: four runs of 32, too.
        let q = bits(block, run / 4 * 64 + run % 2 * 32, run % 4 / 2 * 4, 15);
        let (rest, d) = (two_bits(block, 128, run), of_halves([scales[2 * run], scales[2 * run + 1]]));
        decode(output, |i| d[i] * ((q(i) | rest(i) << 4) - 32) as f32);
    }
}

/// What the sixteen nibbles of IQ4_NL and IQ4_XS stand for (`kvalues_iq4nl`).
const IQ4_VALUES: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// A scale, then 32 nibbles of unevenly spaced values: the low ones are the first half.
#[inline(always)]
fn iq4_nl_block(block: &[u8; 18], output: &mut [f32; 32]) {
    let (scale, q) = (half_at(block, 0), nibbles(block, 2));
    decode(output, |i| scale * IQ4_VALUES[q(i) as usize]);
}

/// Eight sub-blocks as in IQ4_NL, each with a scale of 6 bits around 32.
#[inline(always)]
fn iq4_xs_block(block: &[u8; 136], output: &mut [f32; 256]) {
    let (scale, high_scales) = (half_at(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (j, output) in output.as_chunks_mut().0.iter_mut().enumerate() {
        let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
        let high = (high_scales >> (j * 2) & 3) as u8;
        let (d, q) = (scale * f32::from((low | high << 4) as i8 - 32), nibbles(block, 8 + j * 16));
        decode(output, |i| d * IQ4_VALUES[q(i) as usize]);
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
