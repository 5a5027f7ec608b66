//! Products of matrices that are rounded to IEEE half precision, summed in `f32`: what a run with `precision: fp16` computes.
//! Both sides are decoded a tile at a time and multiplied as `f32`, for few processors multiply such numbers.

use std::ops::Range;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;

use crate::buffer::uninit;
use crate::matmul::{View, Write};
use crate::packed::{Tiles, times, times_transposed};

/// Rounds to nearest even; beyond 65504 to infinity.
pub(crate) fn round_all(numbers: &[f32], bits: &mut [u16]) {
    bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(numbers);
}

pub(crate) fn widen(bits: &[u16], numbers: &mut [f32]) {
    bits.reinterpret_cast::<f16>().convert_to_f32_slice(numbers);
}

/// Has every number be the one of half precision that is nearest.
fn round_in_place(numbers: &mut [f32]) {
    let mut bits = [0; 512];
    for numbers in numbers.chunks_mut(bits.len()) {
        let bits = &mut bits[..numbers.len()];
        round_all(numbers, bits);
        widen(bits, numbers);
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

    /// `scale · selfᵀ · W`.
    pub(crate) fn transpose_times(&self, weight: &impl Tiles, scale: f32) -> Vec<f32> {
        let left = self.view().t();
        let mut output = uninit(left.dims()[0] * weight.dims()[1]);
        times(left, &Rounded(weight), &mut output, Write::Replace, scale);
        output
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
