//! Frozen matrices in fewer bits than `f32`, one form a file. Products decode them tile by tile ([`product`]): no
//! whole matrix ever exists in `f32`.
//!
//! To add a form, write a file with a type that implements [`Form`], and a constructor of [`Packed`] beside the others.

mod bf16;
mod nf4;
mod product;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use product::{times, times_transposed};

/// A frozen row-major matrix `[rows, cols]`. Clones share the memory.
#[derive(Debug, Clone)]
pub struct Packed {
    dims: [usize; 2],
    form: Arc<dyn Form>,
}

/// How the numbers of a matrix are held.
trait Form: Debug + Send + Sync {
    /// Writes numbers `start .. start + output.len()`, counted row by row.
    fn decode(&self, start: usize, output: &mut [f32]);

    /// Bytes in memory.
    fn bytes(&self) -> usize;
}

impl Packed {
    /// 16 bits a weight: the upper half of an `f32`, rounded to nearest even.
    pub fn bf16(weights: &[f32], dims: [usize; 2]) -> Self {
        Self::new(dims, weights.len(), bf16::Bf16::round(weights))
    }

    /// 4 bits a weight and a scale for each 64 of them; with `double_quantization` the scales are 8 bits wide.
    pub fn nf4(weights: &[f32], dims: [usize; 2], double_quantization: bool) -> Self {
        Self::new(dims, weights.len(), nf4::Nf4::quantize(weights, double_quantization))
    }

    fn new(dims: [usize; 2], len: usize, form: impl Form + 'static) -> Self {
        assert_eq!(len, dims[0] * dims[1]);
        Self { dims, form: Arc::new(form) }
    }

    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.form.bytes()
    }

    /// Every number; for exports and references, not for training.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut output = vec![0.0; self.dims[0] * self.dims[1]];
        self.form.decode(0, &mut output);
        output
    }

    /// A part of the matrix, row-major without gaps.
    fn decode_tile(&self, rows: Range<usize>, cols: Range<usize>, output: &mut [f32]) {
        for (row, output) in rows.zip(output.chunks_exact_mut(cols.len())) {
            self.form.decode(row * self.dims[1] + cols.start, output);
        }
    }
}
