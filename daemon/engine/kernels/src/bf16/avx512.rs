//! The product of one block, with AVX512-BF16: two neighbours along the inner dimension are multiplied and added in one
//! lane of 32 bits.

use std::arch::x86_64::*;
use std::sync::LazyLock;

use super::Output;
use super::block::{PANEL, ROWS};
use super::left::Left;
use super::right::Right;
use super::terms::{GROUP, LANES, round};
use crate::matmul::Write;

/// Whether the processor has AVX512-BF16.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// Whether products by it take less time than those of `f32`: not on Intel's processors, which begin half as many of these
/// instructions at a time (355 tokens a second beside 535 on one of 2024).
pub(super) fn is_fast() -> bool {
    // Asked for once: in a virtual machine the question takes a thousand times as long as a look here.
    static IS_INTELS: LazyLock<bool> = LazyLock::new(|| {
        let CpuidResult { ebx, ecx, edx, .. } = __cpuid(0);
        [ebx, edx, ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
    });
    available() && !*IS_INTELS
}

/// `output (=|+=) scale · left · right`.
///
/// # Safety
/// The processor has AVX512-BF16; the output's rows and columns lie in memory that is this caller's alone.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply(left: Left<'_>, right: &Right, output: Output) {
    // One vector of columns leaves registers for the sums of twice as many rows.
    let narrow = output.cols <= LANES && !left.is_in_panels();
    let size = if narrow { 2 * ROWS } else { ROWS };
    // Some rows stay in the first-level cache while all panels go past them.
    for row in (0..output.rows).step_by(size) {
        let (left, rows) = (left.rows_from(row), size.min(output.rows - row));
        for (panel, col) in (0..output.cols).step_by(PANEL).enumerate() {
            let (panel, cols) = (right.panel(panel), PANEL.min(output.cols - col));
            // SAFETY: the place lies inside the output.
            let start = unsafe { output.start.add(row * output.stride + col) };
            let output = Output { start, rows, cols, ..output };
            // SAFETY: the caller's promise, and both sides hold whole rows and panels of as many pairs.
            unsafe { tile(left, panel, right.pairs, output) };
        }
    }
}

/// Chooses the code for as many rows and vectors as there are.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile(left: Left<'_>, right: &[u32], pairs: usize, output: Output) {
    macro_rules! choose {
        ($($rows:literal)*; $($more:literal)*) => {
            match (output.rows, output.cols.div_ceil(LANES)) {
                // SAFETY: the caller's promise.
                $(
                    ($rows, 1) => unsafe { sums::<$rows, 1>(left, right, pairs, output) },
                    ($rows, 2) => unsafe { sums::<$rows, 2>(left, right, pairs, output) },
                    ($rows, _) => unsafe { sums::<$rows, 3>(left, right, pairs, output) },
                )*
                // SAFETY: as above.
                $(($more, _) => unsafe { sums::<$more, 1>(left, right, pairs, output) },)*
                _ => unreachable!("a tile has one to sixteen rows"),
            }
        };
    }
    choose!(1 2 3 4 5 6 7 8; 9 10 11 12 13 14 15 16)
}

/// `R` rows times `V` vectors, all of whose sums stay in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn sums<const R: usize, const V: usize>(left: Left<'_>, right: &[u32], pairs: usize, output: Output) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let (mut factors, mut vectors) = (left.words.as_ptr(), right.as_ptr());
    for _ in 0..pairs {
        let columns: [__m512i; V] = std::array::from_fn(|index| {
            // SAFETY: a panel holds `PANEL` words for each pair of the inner dimension.
            unsafe { _mm512_loadu_si512(vectors.add(index * LANES).cast()) }
        });
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the left side holds as many rows and pairs.
            let factor = as_bf16(_mm512_set1_epi32(unsafe { *factors.add(row * left.row) }.cast_signed()));
            for (sum, &column) in sums.iter_mut().zip(&columns) {
                *sum = _mm512_dpbf16_ps(*sum, factor, as_bf16(column));
            }
        }
        factors = factors.wrapping_add(left.pair);
        vectors = vectors.wrapping_add(PANEL);
    }
    let last = u16::MAX >> (V * LANES - output.cols);
    for (row, sums) in sums.into_iter().enumerate() {
        for (index, sum) in sums.into_iter().enumerate() {
            let mask = if index + 1 == V { last } else { u16::MAX };
            let mut result = _mm512_mul_ps(sum, _mm512_set1_ps(output.scale));
            // SAFETY: the mask keeps inside the row, which is the caller's.
            unsafe {
                let place = output.start.add(row * output.stride + index * LANES);
                if output.write == Write::Accumulate {
                    result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(mask, place));
                }
                _mm512_mask_storeu_ps(place, mask, result);
            }
        }
    }
}

/// As `terms::round_all`.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn round_all(numbers: &[f32], rounded: &mut [u16]) {
    let (vectors, rest) = numbers.as_chunks::<{ 2 * LANES }>();
    let (places, rest_of_places) = rounded[..numbers.len()].as_chunks_mut::<{ 2 * LANES }>();
    for (numbers, place) in vectors.iter().zip(places) {
        // SAFETY: both halves lie in the chunk, and as many places of 16 bits are 512.
        unsafe {
            let (lower, upper) = (numbers.as_ptr(), numbers.as_ptr().add(LANES));
            let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(upper), _mm512_loadu_ps(lower));
            place.as_mut_ptr().cast::<__m512bh>().write_unaligned(both);
        }
    }
    rest.iter().zip(rest_of_places).for_each(|(&number, place)| *place = round(number));
}

/// As `terms::split`, of one group after the other.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn split<'a>(groups: impl Iterator<Item = (&'a [f32; GROUP], [&'a mut [u16; GROUP]; 3])>) {
    for (numbers, places) in groups {
        // SAFETY: both halves lie in the group.
        let mut rest = unsafe { [0, LANES].map(|half| _mm512_loadu_ps(numbers.as_ptr().add(half))) };
        for place in places {
            let both = _mm512_cvtne2ps_pbh(rest[1], rest[0]);
            // SAFETY: as many places of 16 bits are 512.
            unsafe { place.as_mut_ptr().cast::<__m512bh>().write_unaligned(both) };
            let bits = as_bits(both);
            let halves = [_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64::<1>(bits)];
            for (rest, half) in rest.iter_mut().zip(halves) {
                let widened = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
                *rest = _mm512_sub_ps(*rest, widened);
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn as_bits(pairs: __m512bh) -> __m512i {
    // SAFETY: both are 512 bits of which any are valid.
    unsafe { std::mem::transmute(pairs) }
}

#[target_feature(enable = "avx512f")]
fn as_bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of which any are valid.
    unsafe { std::mem::transmute(pairs) }
}

/// Rows of pairs, `stride` apart, into a panel that is as wide as they are many.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn transpose(rows: &[u32], stride: usize, pairs: usize, panel: &mut [u32], width: usize) {
    assert!(stride.is_multiple_of(LANES) && stride >= pairs && width.is_multiple_of(LANES));
    assert!(rows.len() >= width * stride && panel.len() >= pairs * width);
    for at in (0..pairs).step_by(LANES) {
        // The last square may reach beyond the pairs, not beyond the stride; nothing is written of that.
        for col in (0..width).step_by(LANES) {
            // SAFETY: `col + 15` is one of the rows and `at + 15` lies inside each.
            let square = std::array::from_fn(|row| unsafe {
                _mm512_loadu_si512(rows.as_ptr().add((col + row) * stride + at).cast())
            });
            let square = transpose_square(square);
            for (pair, vector) in (at..pairs).zip(square) {
                // SAFETY: the place of these columns in the pair.
                unsafe { _mm512_storeu_si512(panel.as_mut_ptr().add(pair * width + col).cast(), vector) };
            }
        }
    }
}

/// 16 rows of 16 words.
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose_square(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut words = rows;
    // Inside each quarter of 128 bits: 2 × 2 words, then 2 × 2 double words.
    for pair in 0..LANES / 2 {
        let [a, b] = [rows[2 * pair], rows[2 * pair + 1]];
        words[2 * pair] = _mm512_unpacklo_epi32(a, b);
        words[2 * pair + 1] = _mm512_unpackhi_epi32(a, b);
    }
    let mut quads = words;
    for four in (0..LANES).step_by(4) {
        quads[four] = _mm512_unpacklo_epi64(words[four], words[four + 2]);
        quads[four + 1] = _mm512_unpackhi_epi64(words[four], words[four + 2]);
        quads[four + 2] = _mm512_unpacklo_epi64(words[four + 1], words[four + 3]);
        quads[four + 3] = _mm512_unpackhi_epi64(words[four + 1], words[four + 3]);
    }
    // `quads[4 q + i]` holds columns i, i + 4, i + 8, i + 12 of rows 4 q .. 4 q + 4: gather the quarters.
    let mut result = quads;
    for col in 0..4 {
        let [a, b, c, d] = [quads[col], quads[4 + col], quads[8 + col], quads[12 + col]];
        let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
        let (cd_low, cd_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
        result[col] = _mm512_shuffle_i32x4::<0x88>(ab_low, cd_low);
        result[col + 4] = _mm512_shuffle_i32x4::<0xdd>(ab_low, cd_low);
        result[col + 8] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
        result[col + 12] = _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high);
    }
    result
}
