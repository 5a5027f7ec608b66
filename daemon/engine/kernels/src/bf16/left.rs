//! The left side of a product, as its instructions take it.

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::block::{Layout, ROWS, TILE, Words};
use super::terms::{GROUP, LANES, Terms, round, round_all};
use crate::matmul::{View, parts};
use crate::simd::simd_fn;

/// The left side over one part of the inner dimension.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) words: &'a [u32],
    /// From one row to the next; in panels of [`ROWS`] rows, in tiles of [`TILE`].
    pub(super) row: usize,
    /// From one pair to the next; in tiles inside one.
    pub(super) pair: usize,
    /// From one panel to the next.
    pub(super) panel: usize,
}

impl Left<'_> {
    pub(super) fn is_in_panels(self) -> bool {
        self.pair != 1
    }

    /// Where a multiple of [`ROWS`] rows begins.
    pub(super) fn rows_from(self, row: usize) -> Self {
        Self { words: &self.words[row / ROWS * self.panel..], ..self }
    }
}

/// The whole left side, one part of the inner dimension after the other.
pub(super) struct Lefts {
    words: Words,
    /// A multiple of twice [`ROWS`].
    rows: usize,
    /// Of a row of one part.
    pairs: usize,
    order: Order,
}

/// In which order the words of a left side lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Rows,
    /// [`ROWS`] rows' words of a pair, one pair after the other.
    Panels,
    /// Twice [`ROWS`] rows' [`LANES`] words, one term and one step after the other: as they are multiplied, so that memory is
    /// read from one end to the other.
    Tiles,
}

impl Default for Lefts {
    fn default() -> Self {
        Self { words: Words::default(), rows: 0, pairs: 0, order: Order::Rows }
    }
}

impl Lefts {
    /// Writes a matrix into memory that is used again, and leaves room for as many more columns. What takes one pair at a
    /// time takes a transposed matrix in panels; what takes steps of more finds tiles, and zeros up to the end of its last step.
    pub(super) fn fill(&mut self, matrix: View<'_>, depth: usize, room: usize, layout: Layout) {
        let [rows, inner] = matrix.dims();
        *self = Self {
            words: std::mem::take(&mut self.words),
            rows: rows.next_multiple_of(2 * ROWS),
            pairs: layout.pairs(depth) + layout.pairs(room),
            order: match (layout.step, matrix.is_transposed()) {
                (1, false) => Order::Rows,
                (1, true) => Order::Panels,
                _ => Order::Tiles,
            },
        };
        self.words.grow(inner.div_ceil(depth) * self.rows * self.pairs);
        for (part, inside) in parts(inner, depth).enumerate() {
            self.write(matrix.part(0..rows, inside), part, 0, layout);
        }
    }

    /// Columns of one part, behind as many numbers.
    pub(super) fn write(&mut self, matrix: View<'_>, part: usize, behind: usize, layout: Layout) {
        let &mut Self { ref mut words, rows: all, pairs, order } = self;
        let ([rows, inner], skipped) = (matrix.dims(), layout.pairs(behind));
        let of_a_task = if order == Order::Tiles { TILE } else { ROWS };
        let words = &mut words.get_mut()[part * all * pairs..][..all * pairs];
        words.par_chunks_mut(of_a_task * pairs).with_min_len(4).enumerate().for_each(|(index, words)| {
            let rows = index * of_a_task..rows.min((index + 1) * of_a_task);
            if rows.is_empty() {
                return;
            }
            let matrix = matrix.part(rows, 0..inner);
            match order {
                Order::Rows => round_rows(matrix, &mut words[skipped..], pairs),
                Order::Panels => round_panel(matrix, &mut words[skipped * ROWS..]),
                Order::Tiles => write_tiles(matrix, layout.terms, &mut words[skipped * TILE..]),
            }
        });
    }

    pub(super) fn part(&self, index: usize) -> Left<'_> {
        let pairs = self.pairs;
        let words = &self.words.get()[index * self.rows * pairs..][..self.rows * pairs];
        let (row, pair) = match self.order {
            Order::Rows => (pairs, 1),
            Order::Panels => (1, ROWS),
            Order::Tiles => (LANES, 1),
        };
        Left { words, row, pair, panel: ROWS * pairs }
    }
}

/// Rows of a left side as they are.
fn round_rows(matrix: View<'_>, words: &mut [u32], pairs: usize) {
    let ([rows, inner], (numbers, stride)) = (matrix.dims(), matrix.lines());
    for (row, words) in words.chunks_mut(pairs).enumerate().take(rows) {
        let words: &mut [u16] = cast_slice_mut(words);
        round_all(&numbers[row * stride..][..inner], &mut words[..inner]);
        words[inner..inner.next_multiple_of(2)].fill(0);
    }
}

/// Up to [`TILE`] rows of a left side, with zeros up to whole groups.
fn write_tiles(matrix: View<'_>, terms: Terms, words: &mut [u32]) {
    let [rows, inner] = matrix.dims();
    let tiles: &mut [[u16; GROUP]] = cast_slice_mut(words);
    for (tiles, at) in tiles.chunks_mut(TILE * terms.count()).zip((0..inner).step_by(GROUP)) {
        let mut square = [[0.0; GROUP]; TILE];
        copy_square(matrix.part(0..rows, at..inner.min(at + GROUP)), &mut square);
        terms.write_tiles(&square[..rows], tiles);
    }
}

simd_fn! {
    /// A part of a matrix, by rows.
    fn copy_square(matrix: View<'_>, square: &mut [[f32; GROUP]; TILE]) {
        let _ = FMA;
        let [rows, cols] = matrix.dims();
        if matrix.is_transposed() {
            let (numbers, stride) = matrix.t().lines();
            for col in 0..cols {
                square.iter_mut().zip(&numbers[col * stride..][..rows]).for_each(|(row, &number)| row[col] = number);
            }
        } else {
            let (numbers, stride) = matrix.lines();
            for (row, square) in square.iter_mut().enumerate().take(rows) {
                let numbers = &numbers[row * stride..][..cols];
                match numbers.first_chunk() {
                    Some(whole) => *square = *whole,
                    None => square[..cols].copy_from_slice(numbers),
                }
            }
        }
    }
}

simd_fn! {
    /// A panel of a left side whose columns lie without gaps.
    fn round_panel(matrix: View<'_>, words: &mut [u32]) {
        let _ = FMA;
        let ([rows, depth], (numbers, stride)) = (matrix.dims(), matrix.t().lines());
        for (pair, words) in words.chunks_mut(ROWS).enumerate().take(depth.div_ceil(2)) {
            let first = &numbers[2 * pair * stride..][..rows];
            if 2 * pair + 1 < depth {
                let second = &numbers[(2 * pair + 1) * stride..][..rows];
                for ((word, &first), &second) in words.iter_mut().zip(first).zip(second) {
                    *word = u32::from(round(first)) | u32::from(round(second)) << 16;
                }
            } else {
                words.iter_mut().zip(first).for_each(|(word, &first)| *word = u32::from(round(first)));
            }
        }
    }
}
