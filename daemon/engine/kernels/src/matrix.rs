//! A [`Weight`](crate::Weight) on the processor, and its two products.

use std::ops::Range;

use burn_flex::FlexTensor;

use crate::Products;
use crate::bf16::{self, Factor, Source};
use crate::buffer::{contiguous, elements, shape2};
use crate::matmul::{View, Write, matmul};
use crate::packed::{self, Packed};

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
    pub(crate) fn times_transposed(&self, x: &[f32], output: &mut [f32]) {
        let [outputs, inputs] = self.dims();
        let tokens = x.len() / inputs;
        let left = View::new(x, [tokens, inputs]);
        if self.rounds(tokens) {
            return bf16::matmul(output, Write::Replace, 1.0, left, Factor { matrix: self, transposed: true });
        }
        match &self.numbers {
            Numbers::Dense(weight) => {
                matmul(output, Write::Replace, 1.0, left, View::new(elements(weight), [outputs, inputs]).t());
            }
            Numbers::Packed(packed) => packed::times_transposed(x, packed, output, Write::Replace),
        }
    }

    /// `output (=|+=) grad · W`; `grad` is `[tokens, outputs]`.
    pub(crate) fn times(&self, grad: &[f32], output: &mut [f32], write: Write) {
        let [outputs, inputs] = self.dims();
        let tokens = grad.len() / outputs;
        let left = View::new(grad, [tokens, outputs]);
        if self.rounds(tokens) {
            return bf16::matmul(output, write, 1.0, left, Factor { matrix: self, transposed: false });
        }
        match &self.numbers {
            Numbers::Dense(weight) => {
                matmul(output, write, 1.0, left, View::new(elements(weight), [outputs, inputs]));
            }
            Numbers::Packed(packed) => packed::times(grad, packed, output, write),
        }
    }

    /// With few tokens the time goes into reading the matrix, not into multiplying.
    fn rounds(&self, tokens: usize) -> bool {
        self.products.rounded() && tokens > packed::FEW_TOKENS
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

impl Products {
    /// Whether this processor rounds.
    fn rounded(self) -> bool {
        self == Products::Bf16 && bf16::available()
    }

    /// `destination (=|+=) scale · a · b`, row-major without gaps.
    pub(crate) fn matmul(self, destination: &mut [f32], write: Write, scale: f32, a: View<'_>, b: View<'_>) {
        if !self.rounded() {
            return matmul(destination, write, scale, a, b);
        }
        let transposed = b.is_transposed();
        let rows = if transposed { b.t() } else { b };
        bf16::matmul(destination, write, scale, a, Factor { matrix: &rows, transposed });
    }
}
