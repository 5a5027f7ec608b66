//! How blocks of the two sides of a product lie in memory: numbers of 16 bits, two neighbours along the inner dimension
//! in one word of 32 bits.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::Source;
use crate::matmul::View;
use crate::simd::simd_fn;

/// Rows of the left side that are multiplied at a time; twice as many where the right side is narrow.
pub(super) const ROWS: usize = 8;
/// Columns of the right side that are multiplied at a time: with [`ROWS`] as many sums as a processor has registers for,
/// less those that hold the factors.
pub(super) const PANEL: usize = 48;
/// Words of a register.
pub(super) const LANES: usize = 16;
/// The longest part of the inner dimension that is multiplied at a time. What is longer adds up in memory, which costs
/// as much as a whole pass over the output.
const DEPTH: usize = 768;
/// Numbers of a slab of the right side, which lies in the second-level cache while all rows go past it: 384 KiB.
const SLAB: usize = 192 << 10;

/// Of the parts of an inner dimension; whole steps of so many pairs.
pub(super) fn depth(inner: usize, step: usize) -> usize {
    inner.div_ceil(inner.div_ceil(DEPTH).max(1)).next_multiple_of(2 * step)
}

/// Of the pieces of a right side: whole panels, and as many slabs for every thread.
pub(super) fn slab(cols: usize, depth: usize) -> usize {
    let widest = (SLAB / depth).next_multiple_of(PANEL);
    cols.div_ceil(cols.div_ceil(widest).next_multiple_of(rayon::current_num_threads())).next_multiple_of(PANEL)
}

/// The left side over one part of the inner dimension.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) words: &'a [u32],
    /// From one row to the next; in panels of [`ROWS`] rows.
    pub(super) row: usize,
    /// From one pair to the next.
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
#[derive(Default)]
pub(super) struct Lefts {
    words: Vec<u32>,
    /// A multiple of twice [`ROWS`].
    rows: usize,
    depth: usize,
    in_panels: bool,
}

impl Lefts {
    /// Rounds a matrix into memory that is used again. What takes one pair at a time takes a transposed matrix in panels;
    /// what takes steps of more finds rows, and zeros up to the end of its last step.
    pub(super) fn fill(&mut self, matrix: View<'_>, depth: usize, step: usize) {
        let [rows, inner] = matrix.dims();
        *self = Self {
            words: std::mem::take(&mut self.words),
            rows: rows.next_multiple_of(2 * ROWS),
            depth,
            in_panels: matrix.is_transposed() && step == 1,
        };
        let (pairs, per_part) = (depth / 2, self.rows / ROWS);
        let len = inner.div_ceil(depth) * self.rows * pairs;
        if self.words.len() < len {
            self.words.resize(len, 0);
        }
        self.words[..len].par_chunks_mut(ROWS * pairs).with_min_len(4).enumerate().for_each(|(index, words)| {
            let (part, panel) = (index / per_part, index % per_part);
            let inside = part * depth..inner.min((part + 1) * depth);
            let rows = panel * ROWS..rows.min((panel + 1) * ROWS);
            if rows.is_empty() {
                return;
            }
            if matrix.is_transposed() {
                let (numbers, stride) = matrix.t().lines();
                let numbers = &numbers[inside.start * stride..];
                if self.in_panels {
                    round_panel(numbers, stride, inside.len(), rows, words);
                } else {
                    round_columns(numbers, stride, inside.len(), rows, words, pairs);
                }
            } else {
                let (numbers, stride) = matrix.lines();
                round_rows(&numbers[rows.start * stride..], stride, rows.len(), inside, words, pairs, step);
            }
        });
    }

    /// Of a matrix that is not in panels.
    pub(super) fn read(&self, row: usize, cols: Range<usize>, output: &mut [u16]) {
        assert!(!self.in_panels);
        let (mut col, mut rest) = (cols.start, output);
        while !rest.is_empty() {
            let (part, at) = (col / self.depth, col % self.depth);
            let (now, later) = rest.split_at_mut(rest.len().min(self.depth - at));
            let numbers: &[u16] =
                cast_slice(&self.words[(part * self.rows + row) * self.depth / 2..][..self.depth / 2]);
            now.copy_from_slice(&numbers[at..at + now.len()]);
            col += now.len();
            rest = later;
        }
    }

    pub(super) fn part(&self, index: usize) -> Left<'_> {
        let pairs = self.depth / 2;
        let words = &self.words[index * self.rows * pairs..][..self.rows * pairs];
        let (row, pair) = if self.in_panels { (1, ROWS) } else { (pairs, 1) };
        Left { words, row, pair, panel: ROWS * pairs }
    }
}

/// Some columns of the right side over one part of the inner dimension, in panels: in each, column `c`'s pair `p` at
/// `p · PANEL + c`. Columns of the last panel and pairs of the last step that do not exist are zero.
#[derive(Default)]
pub(super) struct Right {
    words: Vec<u32>,
    /// Whole steps.
    pub(super) pairs: usize,
    /// Where numbers lie before they are put in order.
    rows: Vec<u16>,
}

impl Right {
    pub(super) fn panel(&self, index: usize) -> &[u32] {
        &self.words[index * self.pairs * PANEL..][..self.pairs * PANEL]
    }

    fn make_room(&mut self, depth: usize, step: usize, cols: usize, rows: usize) {
        self.pairs = depth.div_ceil(2).next_multiple_of(step);
        let len = cols.next_multiple_of(PANEL) * self.pairs;
        if self.words.len() < len {
            self.words.resize(len, 0);
        }
        if self.rows.len() < rows {
            self.rows.resize(rows, 0);
        }
    }

    /// Of a matrix `[inner, columns]`, in steps of so many pairs.
    pub(super) fn fill(&mut self, matrix: &dyn Source, depth: Range<usize>, step: usize, cols: Range<usize>) {
        self.make_room(depth.len(), step, cols.len(), 2 * cols.len());
        let (first, second) = self.rows[..2 * cols.len()].split_at_mut(cols.len());
        for (pair, at) in depth.clone().step_by(2).enumerate() {
            matrix.read(at, cols.clone(), first);
            if at + 1 < depth.end {
                matrix.read(at + 1, cols.clone(), second);
            } else {
                second.fill(0);
            }
            interleave(first, second, &mut self.words[pair * PANEL..], self.pairs * PANEL);
        }
        for panel in self.words.chunks_mut(self.pairs * PANEL).take(cols.len().div_ceil(PANEL)) {
            panel[depth.len().div_ceil(2) * PANEL..].fill(0);
        }
    }

    /// Of a matrix `[columns, inner]`, in steps of so many pairs.
    pub(super) fn fill_transposed(
        &mut self,
        matrix: &dyn Source,
        depth: Range<usize>,
        step: usize,
        cols: Range<usize>,
    ) {
        let stride = depth.len().next_multiple_of(2 * LANES);
        self.make_room(depth.len(), step, cols.len(), PANEL * stride);
        for (panel, start) in cols.clone().step_by(PANEL).enumerate() {
            let rows = start..cols.end.min(start + PANEL);
            for (row, numbers) in rows.clone().zip(self.rows.chunks_mut(stride)) {
                matrix.read(row, depth.clone(), &mut numbers[..depth.len()]);
                numbers[depth.len()..2 * self.pairs].fill(0);
            }
            self.rows[rows.len() * stride..PANEL * stride].fill(0);
            let words = &mut self.words[panel * self.pairs * PANEL..][..self.pairs * PANEL];
            transpose(cast_slice(&self.rows), stride / 2, self.pairs, words);
        }
    }
}

/// The upper half of the bits, rounded to nearest even; not a number stays one.
#[inline(always)]
pub(super) fn round(number: f32) -> u16 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if number.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// The bits of numbers as bfloat16. Where an instruction does it, what is below the smallest normal number becomes 0, as
/// which products take it anyhow.
pub(crate) fn round_all(numbers: &[f32], rounded: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() == crate::simd::Level::Avx512 && super::avx512::available() {
        // SAFETY: the processor has the instructions.
        return unsafe { super::avx512::round_all(numbers, rounded) };
    }
    round_plainly(numbers, rounded);
}

simd_fn! {
    fn round_plainly(numbers: &[f32], rounded: &mut [u16]) {
        let _ = FMA;
        for (rounded, &number) in rounded.iter_mut().zip(numbers) {
            *rounded = round(number);
        }
    }
}

/// Rows of a left side as they are.
fn round_rows(
    numbers: &[f32],
    stride: usize,
    rows: usize,
    depth: Range<usize>,
    words: &mut [u32],
    pairs: usize,
    step: usize,
) {
    for (row, words) in words.chunks_mut(pairs).enumerate().take(rows) {
        let words: &mut [u16] = cast_slice_mut(words);
        round_all(&numbers[row * stride..][depth.clone()], &mut words[..depth.len()]);
        words[depth.len()..depth.len().next_multiple_of(2 * step)].fill(0);
    }
}

/// Rows of a left side whose columns lie without gaps, with zeros up to a multiple of [`LANES`] pairs.
fn round_columns(numbers: &[f32], stride: usize, depth: usize, rows: Range<usize>, words: &mut [u32], pairs: usize) {
    for at in (0..depth).step_by(2 * LANES) {
        let mut panel = [0; ROWS * LANES];
        round_panel(&numbers[at * stride..], stride, (depth - at).min(2 * LANES), rows.clone(), &mut panel);
        for (row, words) in words.chunks_mut(pairs).enumerate().take(rows.len()) {
            for (pair, word) in words[at / 2..][..LANES].iter_mut().enumerate() {
                *word = panel[pair * ROWS + row];
            }
        }
    }
}

simd_fn! {
    /// A panel of a left side whose columns lie without gaps.
    fn round_panel(numbers: &[f32], stride: usize, depth: usize, rows: Range<usize>, words: &mut [u32]) {
        let _ = FMA;
        for (pair, words) in words.chunks_mut(ROWS).enumerate().take(depth.div_ceil(2)) {
            let first = &numbers[2 * pair * stride..][rows.clone()];
            if 2 * pair + 1 < depth {
                let second = &numbers[(2 * pair + 1) * stride..][rows.clone()];
                for ((word, &first), &second) in words.iter_mut().zip(first).zip(second) {
                    *word = u32::from(round(first)) | u32::from(round(second)) << 16;
                }
            } else {
                words.iter_mut().zip(first).for_each(|(word, &first)| *word = u32::from(round(first)));
            }
        }
    }
}

simd_fn! {
    /// Two rows of a right side into one pair of all panels, which lie `stride` apart.
    fn interleave(first: &[u16], second: &[u16], words: &mut [u32], stride: usize) {
        let _ = FMA;
        for (panel, (first, second)) in first.chunks(PANEL).zip(second.chunks(PANEL)).enumerate() {
            let words = &mut words[panel * stride..][..PANEL];
            for ((word, &first), &second) in words.iter_mut().zip(first).zip(second) {
                *word = u32::from(first) | u32::from(second) << 16;
            }
            words[first.len()..].fill(0);
        }
    }
}

/// [`PANEL`] rows of pairs into a panel. A multiple of [`LANES`] words lies between one row and the next.
fn transpose(rows: &[u32], stride: usize, pairs: usize, panel: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() == crate::simd::Level::Avx512 {
        // SAFETY: `level` returns only what the processor has.
        return unsafe { super::avx512::transpose(rows, stride, pairs, panel) };
    }
    for (pair, words) in panel.chunks_mut(PANEL).enumerate().take(pairs) {
        words.iter_mut().enumerate().for_each(|(col, word)| *word = rows[col * stride + pair]);
    }
}
