//! Products with a packed matrix: each tile is decoded once into the processor's cache and multiplied from there.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Packed;
use crate::buffer::SharedMut;
use crate::matmul::{Threads, View, Write, matmul_into};

/// Numbers in a decoded tile: 256 KiB, half of a common second-level cache.
const TILE: usize = 64 * 1024;
/// Columns of a tile, a multiple of every form's block.
const TILE_COLS: usize = 512;

thread_local! {
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `output (=|+=) x · Wᵀ`; `x` is `[tokens, inputs]`, the output `[tokens, outputs]`.
pub(crate) fn times_transposed(x: &[f32], weight: &Packed, output: &mut [f32], write: Write) {
    let [outputs, inputs] = weight.dims();
    let tokens = x.len() / inputs;
    let output = SharedMut::new(output);
    let size = (TILE / inputs.min(TILE_COLS)).min(outputs.div_ceil(rayon::current_num_threads())).max(1);
    (0..outputs.div_ceil(size)).into_par_iter().for_each(|index| {
        let rows = index * size..outputs.min((index + 1) * size);
        for (part, cols) in parts(inputs, TILE_COLS).enumerate() {
            let write = if part == 0 { write } else { Write::Accumulate };
            let x = View::strided(&x[cols.start..], [tokens, cols.len()], inputs);
            with_tile(weight, rows.clone(), cols, |tile| {
                // SAFETY: these columns of the output are this task's alone.
                unsafe { matmul_into(output, rows.start, outputs, write, 1.0, x, tile.t(), Threads::One) };
            });
        }
    });
}

/// `output (=|+=) grad · W`; `grad` is `[tokens, outputs]`, the output `[tokens, inputs]`.
pub(crate) fn times(grad: &[f32], weight: &Packed, output: &mut [f32], write: Write) {
    let [outputs, inputs] = weight.dims();
    let tokens = grad.len() / outputs;
    let output = SharedMut::new(output);
    // Tasks share out the columns, so that each sums up its own part of the output.
    let width = TILE_COLS.min(inputs.div_ceil(rayon::current_num_threads()).next_multiple_of(64));
    let height = (TILE / width).max(1);
    (0..inputs.div_ceil(width)).into_par_iter().for_each(|index| {
        let cols = index * width..inputs.min((index + 1) * width);
        for (part, rows) in parts(outputs, height).enumerate() {
            let write = if part == 0 { write } else { Write::Accumulate };
            let grad = View::strided(&grad[rows.start..], [tokens, rows.len()], outputs);
            with_tile(weight, rows, cols.clone(), |tile| {
                // SAFETY: these columns of the output are this task's alone.
                unsafe { matmul_into(output, cols.start, inputs, write, 1.0, grad, tile, Threads::One) };
            });
        }
    });
}

fn parts(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(size).map(move |start| start..len.min(start + size))
}

fn with_tile(weight: &Packed, rows: Range<usize>, cols: Range<usize>, multiply: impl FnOnce(View<'_>)) {
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
    use crate::testing::{random, values};

    #[test]
    fn products_equal_those_of_the_decoded_matrix() {
        for [tokens, outputs, inputs] in [[1, 1, 1], [5, 7, 130], [33, 300, 1100]] {
            let (x, grad) = (values(random([tokens, inputs], 1)), values(random([tokens, outputs], 2)));
            let weights = values(random([outputs, inputs], 3));
            for packed in [Packed::bf16(&weights, [outputs, inputs]), Packed::nf4(&weights, [outputs, inputs], true)] {
                let decoded = packed.to_f32();
                let (mut y, mut dx) = (vec![f32::NAN; tokens * outputs], vec![f32::NAN; tokens * inputs]);
                times_transposed(&x, &packed, &mut y, Write::Replace);
                times(&grad, &packed, &mut dx, Write::Replace);
                times(&grad, &packed, &mut dx, Write::Accumulate);
                let dot = |a: &dyn Fn(usize) -> f32, b: &dyn Fn(usize) -> f32, len: usize| {
                    (0..len).map(|i| f64::from(a(i)) * f64::from(b(i))).sum::<f64>()
                };
                for token in 0..tokens {
                    for output in 0..outputs {
                        let want = dot(&|i| x[token * inputs + i], &|i| decoded[output * inputs + i], inputs);
                        let got = f64::from(y[token * outputs + output]);
                        assert!((got - want).abs() < 1e-3, "{packed:?} y[{token}, {output}]: {got}, want {want}");
                    }
                    for input in 0..inputs {
                        let want = 2.0 * dot(&|i| grad[token * outputs + i], &|i| decoded[i * inputs + input], outputs);
                        let got = f64::from(dx[token * inputs + input]);
                        assert!((got - want).abs() < 1e-3, "{packed:?} dx[{token}, {input}]: {got}, want {want}");
                    }
                }
            }
        }
    }
}
