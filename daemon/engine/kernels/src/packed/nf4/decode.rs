//! Whole blocks to numbers by table look-ups inside vector registers.

use super::{BLOCK, CODES};
use crate::simd::{Level, level};

/// `output[i] = CODES[code i] · scale of its block`; each block has [`BLOCK`]` / 2` bytes of `codes`.
pub(super) fn blocks(codes: &[u8], scales: &[f32], output: &mut [f32]) {
    assert!(codes.len() == scales.len() * BLOCK / 2 && output.len() == scales.len() * BLOCK);
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` returns only what the processor has.
        Level::Avx512 => unsafe { avx512(codes, scales, output) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2(codes, scales, output) },
        _ => scalar(codes, scales, output),
    }
}

fn scalar(codes: &[u8], scales: &[f32], output: &mut [f32]) {
    let blocks = codes.chunks_exact(BLOCK / 2).zip(scales).zip(output.chunks_exact_mut(BLOCK));
    for ((codes, &scale), output) in blocks {
        let table = CODES.map(|code| code * scale);
        for (pair, byte) in output.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *pair = [table[usize::from(byte >> 4)], table[usize::from(byte & 15)]];
        }
    }
}

/// Eight numbers at a time: the table lies in two registers, and the code's highest bit says in which.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(codes: &[u8], scales: &[f32], output: &mut [f32]) {
    use std::arch::x86_64::*;

    // Lane by lane the code's place in four bytes; the look-ups ignore what stands above it.
    let shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    // SAFETY: both halves of the table are eight numbers long.
    let (low, high) = unsafe { (_mm256_loadu_ps(CODES.as_ptr()), _mm256_loadu_ps(CODES[8..].as_ptr())) };
    let blocks = codes.chunks_exact(BLOCK / 2).zip(scales).zip(output.chunks_exact_mut(BLOCK));
    for ((codes, &scale), output) in blocks {
        let scale = _mm256_set1_ps(scale);
        let (low, high) = (_mm256_mul_ps(low, scale), _mm256_mul_ps(high, scale));
        for (&bytes, output) in codes.as_chunks::<4>().0.iter().zip(output.as_chunks_mut::<8>().0) {
            let indices = _mm256_srlv_epi32(_mm256_set1_epi32(i32::from_le_bytes(bytes)), shifts);
            let from_low = _mm256_permutevar8x32_ps(low, indices);
            let from_high = _mm256_permutevar8x32_ps(high, indices);
            let is_high = _mm256_castsi256_ps(_mm256_slli_epi32(indices, 28));
            // SAFETY: eight numbers long.
            unsafe { _mm256_storeu_ps(output.as_mut_ptr(), _mm256_blendv_ps(from_low, from_high, is_high)) };
        }
    }
}

/// Sixteen numbers at a time: the table is one register.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn avx512(codes: &[u8], scales: &[f32], output: &mut [f32]) {
    use std::arch::x86_64::*;

    let shifts = _mm512_set1_epi64(4);
    // SAFETY: the table is sixteen numbers long.
    let table = unsafe { _mm512_loadu_ps(CODES.as_ptr()) };
    let blocks = codes.chunks_exact(BLOCK / 2).zip(scales).zip(output.chunks_exact_mut(BLOCK));
    for ((codes, &scale), output) in blocks {
        let table = _mm512_mul_ps(table, _mm512_set1_ps(scale));
        for (&bytes, output) in codes.as_chunks::<8>().0.iter().zip(output.as_chunks_mut::<16>().0) {
            // Each byte in both halves of a 64-bit lane, and shifted by 4 in the lower one. The look-up ignores what
            // stands above the code.
            let bytes = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)));
            let twice = _mm512_shuffle_epi32::<0b10_10_00_00>(bytes);
            let indices = _mm512_srlv_epi32(twice, shifts);
            // SAFETY: sixteen numbers long.
            unsafe { _mm512_storeu_ps(output.as_mut_ptr(), _mm512_permutexvar_ps(indices, table)) };
        }
    }
}
