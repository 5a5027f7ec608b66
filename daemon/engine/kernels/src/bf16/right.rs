//! The right side of a product, as its instructions take it.

use std::ops::Range;

use bytemuck::cast_slice_mut;

use super::block::{Layout, Words};
use super::terms::{GROUP, LANES, Terms};
use super::{Factor, Source};
use crate::simd::simd_fn;

/// Rows of a right side between the one that is read and the one that is to come closer.
const AHEAD: usize = 6;

/// Some columns of the right side over one part of the inner dimension, in panels: in each, column `c`'s pair `p` at
/// `p` times the panel's width and `c`. Columns of the last panel and pairs of the last step that do not exist are zero.
#[derive(Default)]
pub(super) struct Right {
    words: Words,
    /// Whole steps; as many as their terms take.
    pub(super) pairs: usize,
    /// Those of the first matrix, and how many terms its numbers have that are not all zero.
    pub(super) first: usize,
    pub(super) terms: usize,
    /// Columns of a panel.
    pub(super) width: usize,
    /// Where numbers lie before they are put in order.
    rows: Words,
}

/// What is written of a factor, and where.
pub(super) struct Part {
    pub(super) depth: Range<usize>,
    pub(super) cols: Range<usize>,
    /// Numbers of each column that lie before it.
    pub(super) behind: usize,
}

impl Right {
    pub(super) fn panel(&self, index: usize) -> &[u32] {
        &self.words.get()[index * self.pairs * self.width..][..self.pairs * self.width]
    }

    /// Makes room for as many columns of so many numbers.
    pub(super) fn begin(&mut self, depth: usize, cols: usize, layout: Layout) {
        (self.pairs, self.width) = (layout.pairs(depth), layout.panel);
        (self.first, self.terms) = (0, 1);
        self.words.grow(cols.next_multiple_of(self.width) * self.pairs);
    }

    pub(super) fn write(&mut self, factor: Factor<'_>, part: Part, layout: Layout) {
        let terms = match factor.transposed {
            true => self.fill_transposed(factor.matrix, &part, layout),
            false => self.fill(factor.matrix, &part, layout),
        };
        if part.behind == 0 {
            (self.first, self.terms) = (layout.pairs(part.depth.len()), terms);
        }
    }

    /// Of a matrix `[inner, columns]`. Returns how many of its terms are not all zero.
    fn fill(&mut self, matrix: &dyn Source, part: &Part, layout: Layout) -> usize {
        let Part { depth, cols, behind } = part;
        let Layout { terms, step, panel: width, .. } = layout;
        let (places, panel) = (terms.places(cols.len()), self.pairs * width);
        let room = places.next_multiple_of(LANES);
        self.rows.grow(room);
        let mut used = 1;
        let words = &mut self.words.get_mut()[layout.pairs(*behind) * width..];
        if !depth.len().is_multiple_of(2 * step) {
            let last = depth.len() / (2 * step) * step * terms.count() * width;
            let step = step * terms.count() * width;
            words.chunks_mut(panel).take(cols.len().div_ceil(width)).for_each(|panel| panel[last..][..step].fill(0));
        }
        let rows: &mut [u16] = cast_slice_mut(self.rows.get_mut());
        let (first, second) = rows[..2 * room].split_at_mut(room);
        for row in [&mut *first, second] {
            row[places..].fill(0);
        }
        for (pair, at) in depth.clone().step_by(2).enumerate() {
            for row in [at, at + 1].map(|row| row + AHEAD) {
                matrix.prefetch(row, cols.clone());
            }
            matrix.read(at, cols.clone(), terms, &mut first[..places]);
            if at + 1 < depth.end {
                matrix.read(at + 1, cols.clone(), terms, &mut second[..places]);
            } else {
                second.fill(0);
            }
            for row in [&*first, second] {
                used = terms.used(row, used);
            }
            for term in 0..terms.count() {
                let pair = (pair / step * terms.count() + term) * step + pair % step;
                interleave([first, second], terms, term, cols.len(), &mut words[pair * width..], width, panel);
            }
        }
        used
    }

    /// The same of a matrix `[columns, inner]`.
    fn fill_transposed(&mut self, matrix: &dyn Source, part: &Part, layout: Layout) -> usize {
        let Part { depth, cols, behind } = part;
        let Layout { terms, panel: width, .. } = layout;
        let (places, stride) = (terms.places(depth.len()), depth.len().next_multiple_of(GROUP) * terms.count());
        self.rows.grow(width * stride / 2);
        let (skipped, pairs) = (layout.pairs(*behind), layout.pairs(depth.len()));
        let mut used = 1;
        for (panel, start) in cols.clone().step_by(width).enumerate() {
            let rows = start..cols.end.min(start + width);
            let numbers: &mut [u16] = cast_slice_mut(self.rows.get_mut());
            for (row, numbers) in rows.clone().zip(numbers.chunks_mut(stride)) {
                matrix.prefetch(row + AHEAD, depth.clone());
                matrix.read(row, depth.clone(), terms, &mut numbers[..places]);
                numbers[places..stride].fill(0);
                used = terms.used(numbers, used);
            }
            numbers[rows.len() * stride..width * stride].fill(0);
            let words = &mut self.words.get_mut()[(panel * self.pairs + skipped) * width..][..pairs * width];
            transpose(self.rows.get(), stride / 2, pairs, words, width);
        }
        used
    }
}

simd_fn! {
    /// One term of two rows of a right side into one pair of all panels, each of so many words; these lie `stride` apart.
    fn interleave(
        rows: [&[u16]; 2],
        terms: Terms,
        term: usize,
        cols: usize,
        words: &mut [u32],
        width: usize,
        stride: usize,
    ) {
        let _ = FMA;
        for (panel, start) in (0..cols).step_by(width).enumerate() {
            for (col, words) in (start..).step_by(LANES).zip(words[panel * stride..][..width].chunks_mut(LANES)) {
                if col >= cols {
                    words.fill(0);
                    continue;
                }
                let [first, second] = rows.map(|row| &row[terms.place(col, term)..][..LANES]);
                for ((word, &first), &second) in words.iter_mut().zip(first).zip(second) {
                    *word = u32::from(first) | u32::from(second) << 16;
                }
            }
        }
    }
}

/// Rows of pairs into a panel that is as wide as they are many. A multiple of [`LANES`] words lies between one row and the next.
fn transpose(rows: &[u32], stride: usize, pairs: usize, panel: &mut [u32], width: usize) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() == crate::simd::Level::Avx512 {
        // SAFETY: `level` returns only what the processor has.
        return unsafe { super::avx512::transpose(rows, stride, pairs, panel, width) };
    }
    for (pair, words) in panel.chunks_mut(width).enumerate().take(pairs) {
        words.iter_mut().enumerate().for_each(|(col, word)| *word = rows[col * stride + pair]);
    }
}
