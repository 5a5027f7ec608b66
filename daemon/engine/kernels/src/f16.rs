//! Products of matrices that are rounded to IEEE half precision, summed in `f32`: what a run with `precision: fp16` computes.
//! Both sides are decoded a tile at a time and multiplied as `f32`, for few processors multiply such numbers.

use std::ops::Range;

use justtrain_weights::gguf::half_to_f32;
use rayon::prelude::*;

use crate::buffer::uninit;
use crate::matmul::{View, Write};
use crate::packed::{Tiles, times, times_transposed};
use crate::simd::simd_fn;

/// Below this, 2⁻¹⁴, numbers of half precision are multiples of 2⁻²⁴; so are those of `f32` from 0.5 to 1.
const SMALLEST_NORMAL: u32 = 0x3880_0000;
const INFINITE: u32 = 0x7f80_0000;
/// Bits of the mantissa that are rounded away.
const DROPPED: u32 = 13;
/// Between the exponents of `f32` and of half precision.
const EXPONENTS: u32 = 112 << 23;

/// The bits of `|x|` with its mantissa rounded to nearest even, where it is no small number.
#[inline(always)]
fn rounded(magnitude: u32) -> u32 {
    (magnitude + 0xfff + (magnitude >> DROPPED & 1)) >> DROPPED
}

simd_fn! {
    /// The bits of the nearest numbers, of two that are as near the even one; beyond 65504 infinity.
    pub(crate) fn round_all(numbers: &[f32], bits: &mut [u16]) {
        let _ = FMA;
        for (bits, &number) in bits.iter_mut().zip(numbers) {
            let magnitude = number.to_bits() & 0x7fff_ffff;
            let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
            let normal = rounded(magnitude).wrapping_sub(EXPONENTS >> DROPPED).min(0x7c00);
            let finite = if magnitude < SMALLEST_NORMAL { small } else { normal };
            let half = if magnitude > INFINITE { 0x7e00 } else { finite };
            *bits = (number.to_bits() >> 16 & 0x8000 | half) as u16;
        }
    }
}

simd_fn! {
    pub(crate) fn widen(bits: &[u16], numbers: &mut [f32]) {
        let _ = FMA;
        for (number, &bits) in numbers.iter_mut().zip(bits) {
            *number = half_to_f32(bits);
        }
    }
}

simd_fn! {
    /// Has every number be the nearest one of half precision.
    fn round_in_place(numbers: &mut [f32]) {
        let _ = FMA;
        for number in numbers {
            let magnitude = number.to_bits() & 0x7fff_ffff;
            let small = (f32::from_bits(magnitude) + 0.5 - 0.5).to_bits();
            let normal = rounded(magnitude) << DROPPED;
            let normal = if normal < 65536.0f32.to_bits() { normal } else { INFINITE };
            let finite = if magnitude < SMALLEST_NORMAL { small } else { normal };
            *number = f32::from_bits(number.to_bits() & 0x8000_0000 | if magnitude > INFINITE { magnitude } else { finite });
        }
    }
}

/// Numbers that one task rounds.
const CHUNK: usize = 16 * 1024;

/// The left side of products, rounded once for all of them.
pub(crate) struct Half {
    numbers: Vec<f32>,
    /// As the numbers lie.
    dims: [usize; 2],
    transposed: bool,
}

impl Half {
    /// The rows of `matrix`, or of its transpose, lie without gaps.
    pub(crate) fn new(matrix: View<'_>) -> Self {
        let transposed = matrix.is_transposed();
        let rows = if transposed { matrix.t() } else { matrix };
        let dims = rows.dims();
        let mut numbers = uninit(dims[0] * dims[1]);
        numbers.par_chunks_mut(CHUNK).zip(rows.elements().par_chunks(CHUNK)).for_each(|(rounded, numbers)| {
            rounded.copy_from_slice(&numbers[..rounded.len()]);
            round_in_place(rounded);
        });
        Self { numbers, dims, transposed }
    }

    fn view(&self) -> View<'_> {
        let rows = View::new(&self.numbers, self.dims);
        if self.transposed { rows.t() } else { rows }
    }

    /// `output (=|+=) scale · self · Wᵀ`.
    pub(crate) fn times_transposed(&self, weight: &impl Tiles, output: &mut [f32], write: Write, scale: f32) {
        times_transposed(self.view(), &Rounded(weight), output, write, scale);
    }

    /// `output (=|+=) scale · self · W`.
    pub(crate) fn times(&self, weight: &impl Tiles, output: &mut [f32], write: Write, scale: f32) {
        times(self.view(), &Rounded(weight), output, write, scale);
    }
}

/// The right side, whose tiles are rounded when they are decoded.
struct Rounded<'a, T>(&'a T);

impl<T: Tiles> Tiles for Rounded<'_, T> {
    fn dims(&self) -> [usize; 2] {
        self.0.dims()
    }

    fn decode_tile(&self, rows: Range<usize>, cols: Range<usize>, output: &mut [f32]) {
        self.0.decode_tile(rows, cols, output);
        round_in_place(output);
    }
}

/// Of a matrix whose rows lie without gaps.
impl Tiles for View<'_> {
    fn dims(&self) -> [usize; 2] {
        View::dims(*self)
    }

    fn decode_tile(&self, rows: Range<usize>, cols: Range<usize>, output: &mut [f32]) {
        let (numbers, stride) = self.lines();
        for (row, output) in rows.zip(output.chunks_exact_mut(cols.len())) {
            output.copy_from_slice(&numbers[row * stride..][cols.clone()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::simd::testing::at_every_level;

    /// Every number of half precision, those halfway between two of them, and their neighbours; and what is none of these.
    fn numbers() -> Vec<f32> {
        let halves = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32());
        let between = |number: f32| {
            let next = f16::from_bits(f16::from_f32(number).to_bits() + 1).to_f32();
            let middle = if next.is_finite() { (number + next) / 2.0 } else { 65520.0f32.copysign(number) };
            [number, middle, middle.next_up(), middle.next_down(), number.next_up(), number.next_down()]
        };
        let finite = halves.filter(|number| number.is_finite());
        let others = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-30, -f32::MIN_POSITIVE, 1e-45, f32::NAN];
        finite.flat_map(between).chain(others).collect()
    }

    fn assert_same(ours: f32, theirs: f32, what: &str) {
        assert!(
            ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
            "{what}: {ours}, want {theirs}"
        );
    }

    #[test]
    fn rounding_is_that_of_the_crate_half() {
        let numbers = numbers();
        at_every_level(|level| {
            let mut bits = vec![0; numbers.len()];
            round_all(&numbers, &mut bits);
            let mut widened = vec![0.0; numbers.len()];
            widen(&bits, &mut widened);
            let mut in_place = numbers.clone();
            round_in_place(&mut in_place);
            for (at, &number) in numbers.iter().enumerate() {
                let (half, what) = (f16::from_f32(number), format!("{level:?} {number:e}"));
                assert_same(f16::from_bits(bits[at]).to_f32(), half.to_f32(), &what);
                assert_same(widened[at], half.to_f32(), &what);
                assert_same(in_place[at], half.to_f32(), &what);
            }
        });
    }
}
