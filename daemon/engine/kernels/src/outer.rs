//! `leftᵀ · right` of two matrices with a row for each token, the left one with few columns: the gradients of an adapter's
//! factors. A common matrix product would first put the wide side in order, for a few rows only; here it is read once, as
//! it lies.

use std::ops::Range;

use rayon::prelude::*;

use crate::bf16::Source;
use crate::buffer::{SharedMut, uninit};
use crate::matmul::{View, Write, parts};
use crate::simd;
use crate::small::multiply;

/// So many tokens' parts of so many columns lie in the first-level cache while all columns of the left side go past them.
const TOKENS: usize = 64;
const COLS: usize = 64;

/// `scale · leftᵀ · right`, row-major, by all threads.
pub(crate) fn outer(left: View<'_>, right: View<'_>, scale: f32) -> Vec<f32> {
    let ([tokens, rank], [_, cols]) = (left.dims(), right.dims());
    // Each thread adds up the products of the tokens that it made.
    let size = tokens.div_ceil(rayon::current_num_threads()).next_multiple_of(TOKENS);
    let tasks: Vec<_> = parts(tokens, size.max(1)).collect();
    let sums: Vec<Vec<f32>> = tasks.into_par_iter().map(|tokens| sum(left, right, scale, tokens)).collect();
    let all = sums.into_iter().reduce(|mut all, sum| {
        simd::add(&mut all, &sum);
        all
    });
    all.unwrap_or_else(|| vec![0.0; rank * cols])
}

/// Of some tokens.
fn sum(left: View<'_>, right: View<'_>, scale: f32, tokens: Range<usize>) -> Vec<f32> {
    let ([_, rank], [_, width]) = (left.dims(), right.dims());
    let mut sum = uninit(rank * width);
    for start in tokens.clone().step_by(TOKENS) {
        let block = start..tokens.end.min(start + TOKENS);
        let write = if start == tokens.start { Write::Replace } else { Write::Accumulate };
        let left = left.part(block.clone(), 0..rank).t();
        for cols in parts(width, COLS) {
            let next = cols.end..width.min(cols.end + COLS);
            block.clone().for_each(|token| right.prefetch(token, next.clone()));
            let (first, right) = (cols.start, right.part(block.clone(), cols));
            // SAFETY: the sum is this task's, and has as many rows and columns.
            unsafe { multiply(SharedMut::new(&mut sum), first, width, write, scale, left, right) };
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::testing::at_every_level;
    use crate::testing::{random, values};

    #[test]
    fn every_token_counts_once() {
        at_every_level(|level| {
            // No token, one, a whole block, and more than a block for each thread; columns that fill no vector.
            for [tokens, rank, cols] in [[0, 2, 3], [1, 1, 1], [64, 16, 64], [300, 5, 130], [129, 16, 70]] {
                let (left, right) = (values(random([tokens, rank], 1)), values(random([tokens, cols], 2)));
                let got = outer(View::new(&left, [tokens, rank]), View::new(&right, [tokens, cols]), 0.5);
                assert_eq!(got.len(), rank * cols);
                for (at, &got) in got.iter().enumerate() {
                    let product = |token: usize| {
                        f64::from(left[token * rank + at / cols]) * f64::from(right[token * cols + at % cols])
                    };
                    let want = 0.5 * (0..tokens).map(product).sum::<f64>();
                    assert!(
                        (f64::from(got) - want).abs() < 1e-4,
                        "{level:?} {tokens}x{rank}x{cols} {at}: {got}, {want}"
                    );
                }
            }
        });
    }
}
