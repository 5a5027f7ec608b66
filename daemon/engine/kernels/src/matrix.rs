//! A [`Weight`](crate::Weight) on the processor, and its two products.

use std::ops::Range;

use burn_flex::FlexTensor;

use crate::Products;
use crate::bf16::{self, Factor, Rounded, Source};
use crate::buffer::{contiguous, elements, shape2};
use crate::f16::Half;
use crate::matmul::{View, Write, matmul};
use crate::packed::{self, Packed, Tiles};

/// `[outputs, inputs]`, without gaps.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    numbers: Numbers,
    pub(crate) products: Products,
}

#[derive(Debug, Clone)]
enum Numbers {
    Dense(FlexTensor),
    Packed(Packed),
}

impl Matrix {
    pub(crate) fn dense(weight: FlexTensor, products: Products) -> Self {
        Self { numbers: Numbers::Dense(contiguous(weight)), products }
    }

    pub(crate) fn packed(weight: Packed, products: Products) -> Self {
        Self { numbers: Numbers::Packed(weight), products }
    }

    pub(crate) fn dims(&self) -> [usize; 2] {
        match &self.numbers {
            Numbers::Dense(weight) => shape2(weight),
            Numbers::Packed(packed) => packed.dims(),
        }
    }

    /// `output = x · Wᵀ`; `x` is `[tokens, inputs]`.
    pub(crate) fn times_transposed(&self, x: &Side<'_>, output: &mut [f32]) {
        match (&self.numbers, x) {
            (_, Side::Rounded(x)) => {
                x.times(output, Write::Replace, 1.0, Factor { matrix: self, transposed: true });
            }
            (Numbers::Dense(weight), Side::Exact(x)) => {
                matmul(output, Write::Replace, 1.0, *x, View::new(elements(weight), shape2(weight)).t());
            }
            (Numbers::Packed(packed), Side::Exact(x)) => {
                packed::times_transposed(*x, packed, output, Write::Replace, 1.0);
            }
            (_, Side::Half(x)) => x.times_transposed(self, output, Write::Replace, 1.0),
        }
    }

    /// `output (=|+=) grad · W`; `grad` is `[tokens, outputs]`.
    pub(crate) fn times(&self, grad: &Side<'_>, output: &mut [f32], write: Write) {
        match (&self.numbers, grad) {
            (_, Side::Rounded(grad)) => {
                grad.times(output, write, 1.0, Factor { matrix: self, transposed: false });
            }
            (Numbers::Dense(weight), Side::Exact(grad)) => {
                matmul(output, write, 1.0, *grad, View::new(elements(weight), shape2(weight)));
            }
            (Numbers::Packed(packed), Side::Exact(grad)) => packed::times(*grad, packed, output, write, 1.0),
            (_, Side::Half(grad)) => grad.times(self, output, write, 1.0),
        }
    }
}

impl Source for Matrix {
    fn dims(&self) -> [usize; 2] {
        Matrix::dims(self)
    }

    fn read(&self, row: usize, cols: Range<usize>, output: &mut [u16]) {
        match &self.numbers {
            Numbers::Dense(weight) => View::new(elements(weight), shape2(weight)).read(row, cols, output),
            Numbers::Packed(packed) => packed.read_bf16(row, cols, output),
        }
    }
}

impl Tiles for Matrix {
    fn dims(&self) -> [usize; 2] {
        Matrix::dims(self)
    }

    fn decode_tile(&self, rows: Range<usize>, cols: Range<usize>, output: &mut [f32]) {
        match &self.numbers {
            Numbers::Dense(weight) => View::new(elements(weight), shape2(weight)).decode_tile(rows, cols, output),
            Numbers::Packed(packed) => packed.decode_tile(rows, cols, output),
        }
    }
}

/// The left side of products, as they take it.
pub(crate) enum Side<'a> {
    Exact(View<'a>),
    Rounded(Rounded),
    Half(Half),
}

impl Products {
    /// `rows` come without gaps, one after the other.
    pub(crate) fn side(self, rows: View<'_>) -> Side<'_> {
        // With few tokens the time goes into reading the other side, not into multiplying.
        match self {
            _ if rows.dims()[0] <= packed::FEW_TOKENS => Side::Exact(rows),
            Products::Bf16 if bf16::available() => Side::Rounded(Rounded::new(rows)),
            Products::F16 => Side::Half(Half::new(rows)),
            Products::F32 | Products::Bf16 => Side::Exact(rows),
        }
    }
}

impl Side<'_> {
    /// `destination (=|+=) scale · self · b`, row-major without gaps.
    pub(crate) fn matmul(&self, destination: &mut [f32], write: Write, scale: f32, b: View<'_>) {
        match self {
            Side::Exact(a) => matmul(destination, write, scale, *a, b),
            Side::Rounded(a) => {
                let transposed = b.is_transposed();
                let rows = if transposed { b.t() } else { b };
                a.times(destination, write, scale, Factor { matrix: &rows, transposed });
            }
            Side::Half(a) if b.is_transposed() => a.times_transposed(&b.t(), destination, write, scale),
            Side::Half(a) => a.times(&b, destination, write, scale),
        }
    }
}
