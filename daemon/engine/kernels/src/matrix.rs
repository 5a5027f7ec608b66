//! A [`Weight`](crate::Weight) on the processor, and its two products.

use burn_flex::FlexTensor;

use crate::buffer::{elements, shape2};
use crate::matmul::{View, Write, matmul};
use crate::packed::{self, Packed};

/// `[outputs, inputs]`, without gaps.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    Dense(FlexTensor),
    Packed(Packed),
}

impl Matrix {
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Matrix::Dense(weight) => shape2(weight),
            Matrix::Packed(packed) => packed.dims(),
        }
    }

    /// `output = x · Wᵀ`; `x` is `[tokens, inputs]`.
    pub(crate) fn times_transposed(&self, x: &[f32], output: &mut [f32]) {
        match self {
            Matrix::Dense(weight) => {
                let [outputs, inputs] = shape2(weight);
                let x = View::new(x, [x.len() / inputs, inputs]);
                matmul(output, Write::Replace, 1.0, x, View::new(elements(weight), [outputs, inputs]).t());
            }
            Matrix::Packed(packed) => packed::times_transposed(x, packed, output, Write::Replace),
        }
    }

    /// `output (=|+=) grad · W`; `grad` is `[tokens, outputs]`.
    pub(crate) fn times(&self, grad: &[f32], output: &mut [f32], write: Write) {
        match self {
            Matrix::Dense(weight) => {
                let [outputs, inputs] = shape2(weight);
                let grad = View::new(grad, [grad.len() / outputs, outputs]);
                matmul(output, write, 1.0, grad, View::new(elements(weight), [outputs, inputs]));
            }
            Matrix::Packed(packed) => packed::times(grad, packed, output, write),
        }
    }
}
