//! A [`Weight`](crate::Weight) on the processor, and its two products.

use std::ops::Range;

use burn_flex::FlexTensor;

use crate::Products;
use crate::bf16::{self, Factor, Instructions, Prepared, Source, Terms};
use crate::buffer::{contiguous, elements, shape2, uninit};
use crate::f16::Half;
use crate::matmul::{View, Write, matmul, parts};
use crate::outer::outer;
use crate::packed::{self, Packed, Tiles};
#[cfg(target_arch = "x86_64")]
use crate::panels::{self, Right};

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

    fn with_source<R>(&self, multiply: impl FnOnce(&dyn Source) -> R) -> R {
        match &self.numbers {
            Numbers::Dense(weight) => multiply(&View::new(elements(weight), shape2(weight))),
            Numbers::Packed(packed) => multiply(packed),
        }
    }

    /// `output = x · Wᵀ`; `x` is `[tokens, inputs]`.
    pub(crate) fn times_transposed(&self, x: &Side<'_>, output: &mut [f32]) {
        match (&self.numbers, x) {
            (_, Side::Prepared(x)) => {
                self.with_source(|matrix| x.times(output, Write::Replace, 1.0, Factor { matrix, transposed: true }));
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

    /// `output = x · W + low · factor`, or of both transposed. `low` is `[tokens, rank]`, for which the left side has room; the
    /// factor lies as the matrix does, with the rank in place of what is multiplied.
    pub(crate) fn times_with(
        &self,
        x: &mut Side<'_>,
        output: &mut [f32],
        low: View<'_>,
        factor: View<'_>,
        transposed: bool,
    ) {
        match x {
            Side::Prepared(x) => self.with_source(|matrix| {
                let [right, below] = [matrix, &factor as &dyn Source].map(|matrix| Factor { matrix, transposed });
                x.times_with(output, right, low, below);
            }),
            #[cfg(target_arch = "x86_64")]
            Side::Exact(x) if panels::are_used(x.dims()[0]) => {
                let [right, below] = [self as &dyn Tiles, &factor].map(|matrix| Right { matrix, transposed });
                panels::multiply(output, Write::Replace, 1.0, *x, right, Some((low, below)));
            }
            x if transposed => {
                self.times_transposed(x, output);
                self.products.side(low).matmul(output, Write::Accumulate, 1.0, factor.t());
            }
            x => {
                self.times(x, output, Write::Replace);
                self.products.side(low).matmul(output, Write::Accumulate, 1.0, factor);
            }
        }
    }

    /// `output (=|+=) grad · W`; `grad` is `[tokens, outputs]`.
    pub(crate) fn times(&self, grad: &Side<'_>, output: &mut [f32], write: Write) {
        match (&self.numbers, grad) {
            (_, Side::Prepared(grad)) => {
                self.with_source(|matrix| grad.times(output, write, 1.0, Factor { matrix, transposed: false }));
            }
            (Numbers::Dense(weight), Side::Exact(grad)) => {
                matmul(output, write, 1.0, *grad, View::new(elements(weight), shape2(weight)));
            }
            (Numbers::Packed(packed), Side::Exact(grad)) => packed::times(*grad, packed, output, write, 1.0),
            (_, Side::Half(grad)) => grad.times(self, output, write, 1.0),
        }
    }

    /// `output = grad · W` where nothing else is multiplied by the gradient, which is wide: of it no more exists in terms than is
    /// multiplied at a time.
    pub(crate) fn times_wide(&self, grad: View<'_>, output: &mut [f32]) {
        let ([tokens, outputs], Some((instructions, terms))) = (grad.dims(), self.products.terms(grad)) else {
            return self.times(&self.products.side(grad), output, Write::Replace);
        };
        self.with_source(|matrix| {
            for (index, rows) in parts(outputs, bf16::DEPTH).enumerate() {
                let left = Prepared::new(instructions, grad.part(0..tokens, rows.clone()), 0, terms);
                let write = if index == 0 { Write::Replace } else { Write::Accumulate };
                left.times(output, write, 1.0, Factor { matrix: &Rows { matrix, rows }, transposed: false });
            }
        });
    }
}

/// Some rows of a matrix.
struct Rows<'a> {
    matrix: &'a dyn Source,
    rows: Range<usize>,
}

impl Source for Rows<'_> {
    fn dims(&self) -> [usize; 2] {
        [self.rows.len(), self.matrix.dims()[1]]
    }

    fn read(&self, row: usize, cols: Range<usize>, terms: Terms, output: &mut [u16]) {
        self.matrix.read(self.rows.start + row, cols, terms, output);
    }

    fn prefetch(&self, row: usize, cols: Range<usize>) {
        self.matrix.prefetch(self.rows.start + row, cols);
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
    /// In terms of bfloat16.
    Prepared(Prepared),
    Half(Half),
}

impl Products {
    /// `rows` come without gaps, one after the other.
    pub(crate) fn side(self, rows: View<'_>) -> Side<'_> {
        self.side_with_room(rows, 0)
    }

    /// The same with room for as many more columns.
    pub(crate) fn side_with_room(self, rows: View<'_>, room: usize) -> Side<'_> {
        match self.terms(rows) {
            Some((instructions, terms)) => Side::Prepared(Prepared::new(instructions, rows, room, terms)),
            None if self == Products::F16 && !is_few(rows) => Side::Half(Half::new(rows)),
            None => Side::Exact(rows),
        }
    }

    /// By what the rows are multiplied in terms, if they are, and in which.
    fn terms(self, rows: View<'_>) -> Option<(Instructions, Terms)> {
        match (self, Instructions::current()) {
            _ if is_few(rows) => None,
            (_, Instructions::Plain) => None,
            (Products::Bf16, instructions) => Some((instructions, Terms::One)),
            // Only there six products of terms take less time than one of `f32`.
            (Products::F32, Instructions::Amx) => Some((Instructions::Amx, Terms::Three)),
            _ => None,
        }
    }
}

/// Then the time goes into reading the other side, not into multiplying.
fn is_few(rows: View<'_>) -> bool {
    rows.dims()[0] <= packed::FEW_TOKENS
}

impl Products {
    /// `scale · leftᵀ · right`, row-major; `left` is `[tokens, rank]` and `right` `[tokens, cols]`. Where a right side would be put in
    /// order for a few rows only, it is multiplied as it lies, and nothing is rounded.
    pub(crate) fn outer(self, left: View<'_>, right: View<'_>, scale: f32) -> Vec<f32> {
        if self != Self::F16 {
            return outer(left, right, scale);
        }
        let mut output = uninit(left.dims()[1] * right.dims()[1]);
        self.side(left.t()).matmul(&mut output, Write::Replace, scale, right);
        output
    }
}

impl Side<'_> {
    /// `destination (=|+=) scale · self · b`, row-major without gaps.
    pub(crate) fn matmul(&self, destination: &mut [f32], write: Write, scale: f32, b: View<'_>) {
        match self {
            Side::Exact(a) => matmul(destination, write, scale, *a, b),
            Side::Prepared(a) => {
                let transposed = b.is_transposed();
                let rows = if transposed { b.t() } else { b };
                a.times(destination, write, scale, Factor { matrix: &rows, transposed });
            }
            Side::Half(a) if b.is_transposed() => a.times_transposed(&b.t(), destination, write, scale),
            Side::Half(a) => a.times(&b, destination, write, scale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::testing::every_form;
    use crate::simd::testing::at_every_level;
    use crate::testing::{random, values};

    #[test]
    fn a_wide_gradient_gives_the_same_a_part_at_a_time() {
        // Few rows and many; less than a part, and two with a rest.
        at_every_level(|level| {
            for [tokens, outputs, inputs] in [[3, 40, 64], [70, 2 * bf16::DEPTH + 100, 64]] {
                let grad = values(random([tokens, outputs], 1));
                let grad = View::new(&grad, [tokens, outputs]);
                for (name, packed) in every_form([outputs, inputs], 2) {
                    for products in [Products::F32, Products::Bf16, Products::F16] {
                        let matrix = Matrix::packed(packed.clone(), products);
                        let mut outputs = [0.0; 2].map(|_| vec![f32::NAN; tokens * inputs]);
                        let [wide, whole] = &mut outputs;
                        matrix.times_wide(grad, wide);
                        matrix.times(&products.side(grad), whole, Write::Replace);
                        let largest = whole.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
                        for (wide, whole) in wide.iter().zip(whole) {
                            assert!(
                                (wide - *whole).abs() <= largest * 1e-5,
                                "{level:?} {name} {products:?}: {wide}, not {whole}"
                            );
                        }
                    }
                }
            }
        });
    }
}
