//! Products with a matrix that is decoded: each tile once, into the processor's cache, where it is multiplied.
//!
//! Tasks share out the output: pieces of its columns (each a slab of the matrix that only this task decodes) and, where
//! there are fewer slabs than threads, of its tokens. With AVX2 alone `panels.rs` does all this.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::SharedMut;
use crate::matmul::{Piece, View, Write, matmul_into, parts, pieces};
#[cfg(target_arch = "x86_64")]
use crate::panels::{self, Right};
use crate::simd;

/// Outputs of a slab. Packing the activations for the micro-kernel is paid once for each slab, so slabs are wide.
const SLAB: usize = 512;
/// The inner dimension is taken in parts of this length, a multiple of every form's block. Each is a pass over the output, which
/// costs more than that a tile of 1.5 MiB leaves many a second-level cache before it is multiplied.
const DEPTH: usize = 768;
/// Up to so many tokens, as when an answer is generated, rows are decoded and multiplied one by one.
pub(crate) const FEW_TOKENS: usize = 4;
/// Fewer tokens are not worth decoding a slab twice.
const TOKENS: usize = 64;

thread_local! {
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A matrix that is decoded a tile at a time.
pub(crate) trait Tiles: Sync {
    /// `[rows, cols]`.
    fn dims(&self) -> [usize; 2];

    /// A part of the matrix, row-major without gaps.
    fn decode_tile(&self, rows: Range<usize>, cols: Range<usize>, output: &mut [f32]);
}

/// `output (=|+=) scale · x · Wᵀ`; `x` is `[tokens, inputs]`, the output `[tokens, outputs]`.
pub(crate) fn times_transposed(x: View<'_>, weight: &impl Tiles, output: &mut [f32], write: Write, scale: f32) {
    let [outputs, inputs] = weight.dims();
    let [tokens, width] = x.dims();
    assert_eq!(width, inputs);
    if tokens <= FEW_TOKENS && !x.is_transposed() && scale == 1.0 {
        return few_tokens(x.elements(), weight, output, write);
    }
    #[cfg(target_arch = "x86_64")]
    if panels::are_used(tokens) {
        return panels::multiply(output, write, scale, x, Right { matrix: weight, transposed: true }, None);
    }
    let output = SharedMut::new(output);
    share(tokens, outputs).into_par_iter().for_each(|Piece { rows: tokens, cols: slab }| {
        for (part, depth) in parts(inputs, DEPTH).enumerate() {
            let write = if part == 0 { write } else { Write::Accumulate };
            let x = x.part(tokens.clone(), depth.clone());
            with_tile(weight, slab.clone(), depth, |tile| {
                let first = tokens.start * outputs + slab.start;
                // SAFETY: this piece of the output is this task's alone.
                unsafe { matmul_into(output, first, outputs, write, scale, x, tile.t()) };
            });
        }
    });
}

/// `output (=|+=) scale · grad · W`; `grad` is `[tokens, outputs]`, the output `[tokens, inputs]`.
pub(crate) fn times(grad: View<'_>, weight: &impl Tiles, output: &mut [f32], write: Write, scale: f32) {
    let [outputs, inputs] = weight.dims();
    assert_eq!(grad.dims()[1], outputs);
    #[cfg(target_arch = "x86_64")]
    if panels::are_used(grad.dims()[0]) {
        return panels::multiply(output, write, scale, grad, Right { matrix: weight, transposed: false }, None);
    }
    let output = SharedMut::new(output);
    share(grad.dims()[0], inputs).into_par_iter().for_each(|Piece { rows: tokens, cols: slab }| {
        for (part, depth) in parts(outputs, DEPTH).enumerate() {
            let write = if part == 0 { write } else { Write::Accumulate };
            let grad = grad.part(tokens.clone(), depth.clone());
            with_tile(weight, depth, slab.clone(), |tile| {
                let first = tokens.start * inputs + slab.start;
                // SAFETY: this piece of the output is this task's alone.
                unsafe { matmul_into(output, first, inputs, write, scale, grad, tile) };
            });
        }
    });
}

fn share(tokens: usize, width: usize) -> Vec<Piece> {
    let threads = rayon::current_num_threads();
    // As many slabs for every thread; borders on whole blocks.
    let count = width.div_ceil(SLAB).next_multiple_of(threads);
    let slab = width.div_ceil(count).next_multiple_of(64).min(SLAB);
    let slabs = width.div_ceil(slab);
    let token_parts = threads.div_ceil(slabs).min(tokens.div_ceil(TOKENS));
    let size = tokens.div_ceil(token_parts);
    pieces(tokens, size, width, slab)
}

/// As [`times_transposed`]: the time goes into reading the matrix, so it is read once and in order.
fn few_tokens(x: &[f32], weight: &impl Tiles, output: &mut [f32], write: Write) {
    let [outputs, inputs] = weight.dims();
    let output = SharedMut::new(output);
    let rows = outputs.div_ceil(4 * rayon::current_num_threads()).clamp(1, 64);
    (0..outputs.div_ceil(rows)).into_par_iter().for_each(|index| {
        for row in index * rows..outputs.min((index + 1) * rows) {
            with_tile(weight, row..row + 1, 0..inputs, |tile| {
                for (token, x) in x.chunks(inputs).enumerate() {
                    // SAFETY: this column of the output is this task's alone.
                    let output = unsafe { &mut *output.at(token * outputs + row) };
                    let product = simd::dot(x, tile.elements());
                    *output = if write == Write::Accumulate { *output + product } else { product };
                }
            });
        }
    });
}

fn with_tile(weight: &impl Tiles, rows: Range<usize>, cols: Range<usize>, multiply: impl FnOnce(View<'_>)) {
    DECODED.with_borrow_mut(|decoded| {
        let shape = [rows.len(), cols.len()];
        let len = shape[0] * shape[1];
        if decoded.len() < len {
            decoded.resize(len, 0.0);
        }
        let tile = &mut decoded[..len];
        weight.decode_tile(rows, cols, tile);
        multiply(View::new(tile, shape));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::testing::every_form;
    use crate::simd::testing::at_every_level;
    use crate::testing::{random, values};

    fn dot(a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32, len: usize) -> f64 {
        (0..len).map(|i| f64::from(a(i)) * f64::from(b(i))).sum()
    }

    #[test]
    fn products_equal_those_of_the_decoded_matrix() {
        at_every_level(|level| {
            // Few tokens and many, one slab and several, whole blocks and odd rests; the second write adds to the first.
            for [tokens, outputs, inputs] in [[1, 1, 1], [3, 66, 256], [5, 7, 130], [33, 600, 1280], [140, 530, 300]] {
                let (x, grad) = (values(random([tokens, inputs], 1)), values(random([tokens, outputs], 2)));
                for (name, packed) in every_form([outputs, inputs], 3) {
                    let decoded = packed.to_f32();
                    let (mut y, mut dx) = (vec![f32::NAN; tokens * outputs], vec![f32::NAN; tokens * inputs]);
                    for write in [Write::Replace, Write::Accumulate] {
                        times_transposed(View::new(&x, [tokens, inputs]), &packed, &mut y, write, 1.0);
                        times(View::new(&grad, [tokens, outputs]), &packed, &mut dx, write, 1.0);
                    }
                    let largest = decoded.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
                    let tolerance = f64::from(largest) * 1e-3;
                    // A prime step looks at every place of small matrices and at some of large ones.
                    let step = if tokens * outputs * inputs > 1 << 20 { 101 } else { 1 };
                    for at in (0..tokens * outputs).step_by(step) {
                        let (token, output) = (at / outputs, at % outputs);
                        let want = 2.0 * dot(|i| x[token * inputs + i], |i| decoded[output * inputs + i], inputs);
                        let got = f64::from(y[at]);
                        assert!(
                            (got - want).abs() < tolerance,
                            "{level:?} {name} y[{token}, {output}]: {got}, want {want}"
                        );
                    }
                    for at in (0..tokens * inputs).step_by(step) {
                        let (token, input) = (at / inputs, at % inputs);
                        let want = 2.0 * dot(|i| grad[token * outputs + i], |i| decoded[i * inputs + input], outputs);
                        let got = f64::from(dx[at]);
                        assert!(
                            (got - want).abs() < tolerance,
                            "{level:?} {name} dx[{token}, {input}]: {got}, want {want}"
                        );
                    }
                }
            }
        });
    }
}
