//! How blocks of the two sides of a product lie in memory: numbers of 16 bits, two neighbours along the inner dimension
//! in one word of 32 bits.

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};

use super::terms::{LANES, Terms};

/// Rows of the left side that are multiplied at a time; twice as many where the right side is narrow.
pub(super) const ROWS: usize = 8;
/// Columns of the right side that are multiplied at a time: with [`ROWS`] as many sums as a processor has registers for,
/// less those that hold the factors.
pub(super) const PANEL: usize = 48;
/// Rows of a tile.
pub(super) const TILE: usize = 2 * ROWS;
/// The longest part of the inner dimension that is multiplied at a time. What is longer adds up in memory, which costs
/// as much as a whole pass over the output.
pub(crate) const DEPTH: usize = 768;
/// Numbers of a slab of the right side, which lies in the second-level cache while all rows go past it: 384 KiB, and three times that of three terms.
const SLAB: usize = 192 << 10;

/// What a product's instructions take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) terms: Terms,
    /// Pairs along the inner dimension that are multiplied at a time.
    pub(super) step: usize,
    /// Columns of the right side that are.
    pub(super) panel: usize,
}

impl Layout {
    /// So many numbers, and what fills up the last step.
    pub(super) fn whole(self, numbers: usize) -> usize {
        numbers.next_multiple_of(2 * self.step)
    }

    /// Of the parts of an inner dimension.
    pub(super) fn depth(self, inner: usize) -> usize {
        self.whole(inner.div_ceil(inner.div_ceil(DEPTH).max(1)))
    }

    /// Pairs that so many numbers take.
    pub(super) fn pairs(self, numbers: usize) -> usize {
        self.whole(numbers) / 2 * self.terms.count()
    }

    /// Of the pieces of a right side: whole panels, and as many slabs for every thread.
    pub(super) fn slab(self, cols: usize, depth: usize) -> usize {
        let widest = (SLAB / depth).next_multiple_of(self.panel);
        let slabs = cols.div_ceil(widest).next_multiple_of(rayon::current_num_threads());
        cols.div_ceil(slabs).next_multiple_of(self.panel)
    }
}

/// Memory that begins where a line of the cache does: what straddles two takes twice as long to load.
#[derive(Default)]
pub(super) struct Words(Vec<Line>);

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u32; LANES]);

impl Words {
    pub(super) fn grow(&mut self, words: usize) {
        let lines = words.div_ceil(LANES);
        if self.0.len() < lines {
            self.0.resize(lines, Line::zeroed());
        }
    }

    pub(super) fn get(&self) -> &[u32] {
        cast_slice(&self.0)
    }

    pub(super) fn get_mut(&mut self) -> &mut [u32] {
        cast_slice_mut(&mut self.0)
    }
}
