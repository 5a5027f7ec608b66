//! How blocks of the two sides of a product lie in memory: numbers of 16 bits, two neighbours along the inner dimension
//! in one word of 32 bits.
//!
//! Where a number stands as three ([`Terms`]), those of a [`GROUP`] lie together: its first terms, its second, its third.

use std::ops::Range;

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use rayon::prelude::*;

use super::Source;
use crate::matmul::{View, parts};
use crate::simd::simd_fn;

/// Rows of the left side that are multiplied at a time; twice as many where the right side is narrow.
pub(super) const ROWS: usize = 8;
/// Columns of the right side that are multiplied at a time: with [`ROWS`] as many sums as a processor has registers for,
/// less those that hold the factors.
pub(super) const PANEL: usize = 48;
/// Words of a register.
pub(super) const LANES: usize = 16;
/// Numbers of a register.
pub(crate) const GROUP: usize = 2 * LANES;
/// The longest part of the inner dimension that is multiplied at a time. What is longer adds up in memory, which costs
/// as much as a whole pass over the output.
pub(super) const DEPTH: usize = 768;
/// Rows of a right side between the one that is read and the one that is to come closer.
const AHEAD: usize = 6;
/// Numbers of a slab of the right side, which lies in the second-level cache while all rows go past it: 384 KiB.
const SLAB: usize = 192 << 10;

/// By how many bfloat16 numbers a number of 32 bits is represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terms {
    /// By the nearest.
    One,
    /// By their sum: the nearest, what is nearest to the rest, and the rest of that. Each holds 8 significant bits, so
    /// the sum is the number itself, unless a term is smaller than a normal number (then it is zero) or the first is
    /// larger than the largest (then nothing is a number).
    Three,
}

impl Terms {
    pub(super) fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Three => 3,
        }
    }

    /// Places that numbers of a row take.
    pub(crate) fn places(self, numbers: usize) -> usize {
        match self {
            Self::One => numbers,
            Self::Three => 3 * numbers.next_multiple_of(GROUP),
        }
    }

    /// Writes the numbers' bits. A group that is not full is filled up with zeros.
    pub(crate) fn write(self, numbers: &[f32], places: &mut [u16]) {
        match self {
            Self::One => round_all(numbers, places),
            Self::Three => split_all(numbers, places),
        }
    }

    /// Writes the numbers of each of up to [`TILE`] rows into one tile for each term.
    fn write_tiles(self, rows: &[[f32; GROUP]], tiles: &mut [[u16; GROUP]]) {
        match self {
            Self::One => round_all(rows.as_flattened(), &mut tiles.as_flattened_mut()[..GROUP * rows.len()]),
            Self::Three => {
                let (first, rest) = tiles.split_at_mut(TILE);
                let (second, third) = rest.split_at_mut(TILE);
                let places =
                    first.iter_mut().zip(second).zip(third).map(|((first, second), third)| [first, second, third]);
                split(rows.iter().zip(places));
            }
        }
    }

    /// How many terms of a row are not zero everywhere; at least one.
    fn used(self, places: &[u16]) -> usize {
        match self {
            Self::One => 1,
            Self::Three => {
                let [second, third] = last_terms(places);
                if third {
                    3
                } else if second {
                    2
                } else {
                    1
                }
            }
        }
    }

    /// Where the terms number `term` of columns from a multiple of [`LANES`] on lie in a row.
    fn place(self, col: usize, term: usize) -> usize {
        match self {
            Self::One => col,
            Self::Three => (col / GROUP * 3 + term) * GROUP + col % GROUP,
        }
    }
}

/// What a product's instructions take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) terms: Terms,
    /// Pairs along the inner dimension that are multiplied at a time.
    pub(super) step: usize,
    /// Columns of the right side that are.
    pub(super) panel: usize,
    /// Numbers along the inner dimension, at most, whose products add up before they are written.
    pub(super) longest: usize,
}

impl Layout {
    /// So many numbers, and what fills up the last step.
    pub(super) fn whole(self, numbers: usize) -> usize {
        numbers.next_multiple_of(2 * self.step)
    }

    /// Of the parts of an inner dimension.
    pub(super) fn depth(self, inner: usize) -> usize {
        self.whole(inner.div_ceil(inner.div_ceil(self.longest).max(1)))
    }

    /// Pairs that so many numbers take.
    fn pairs(self, numbers: usize) -> usize {
        self.whole(numbers) / 2 * self.terms.count()
    }

    /// Of the pieces of a right side: whole panels, and as many slabs for every thread.
    pub(super) fn slab(self, cols: usize, depth: usize) -> usize {
        let widest = (SLAB / depth).next_multiple_of(self.panel);
        let slabs = cols.div_ceil(widest).next_multiple_of(rayon::current_num_threads());
        cols.div_ceil(slabs).next_multiple_of(self.panel)
    }
}

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

/// Memory that begins where a line of the cache does: what straddles two takes twice as long to load.
#[derive(Default)]
struct Words(Vec<Line>);

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u32; LANES]);

impl Words {
    fn grow(&mut self, words: usize) {
        let lines = words.div_ceil(LANES);
        if self.0.len() < lines {
            self.0.resize(lines, Line::zeroed());
        }
    }

    fn get(&self) -> &[u32] {
        cast_slice(&self.0)
    }

    fn get_mut(&mut self) -> &mut [u32] {
        cast_slice_mut(&mut self.0)
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

/// Rows of a tile.
pub(super) const TILE: usize = 2 * ROWS;

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

    /// Writes a part of a matrix `[inner, columns]`, behind as many numbers of each column.
    pub(super) fn fill(
        &mut self,
        matrix: &dyn Source,
        depth: Range<usize>,
        cols: Range<usize>,
        behind: usize,
        layout: Layout,
    ) {
        let Layout { terms, step, panel: width, .. } = layout;
        let (places, panel) = (terms.places(cols.len()), self.pairs * width);
        let room = places.next_multiple_of(LANES);
        self.rows.grow(room);
        let mut used = 1;
        let words = &mut self.words.get_mut()[layout.pairs(behind) * width..];
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
            used = used.max(terms.used(first)).max(terms.used(second));
            for term in 0..terms.count() {
                let pair = (pair / step * terms.count() + term) * step + pair % step;
                interleave([first, second], terms, term, cols.len(), &mut words[pair * width..], width, panel);
            }
        }
        self.note(behind, layout.pairs(depth.len()), used);
    }

    /// Of a matrix that was written.
    fn note(&mut self, behind: usize, pairs: usize, terms: usize) {
        if behind == 0 {
            (self.first, self.terms) = (pairs, terms);
        }
    }

    /// The same of a matrix `[columns, inner]`.
    pub(super) fn fill_transposed(
        &mut self,
        matrix: &dyn Source,
        depth: Range<usize>,
        cols: Range<usize>,
        behind: usize,
        layout: Layout,
    ) {
        let Layout { terms, panel: width, .. } = layout;
        let (places, stride) = (terms.places(depth.len()), depth.len().next_multiple_of(GROUP) * terms.count());
        self.rows.grow(width * stride / 2);
        let (skipped, pairs) = (layout.pairs(behind), layout.pairs(depth.len()));
        let mut used = 1;
        for (panel, start) in cols.clone().step_by(width).enumerate() {
            let rows = start..cols.end.min(start + width);
            let numbers: &mut [u16] = cast_slice_mut(self.rows.get_mut());
            for (row, numbers) in rows.clone().zip(numbers.chunks_mut(stride)) {
                matrix.prefetch(row + AHEAD, depth.clone());
                matrix.read(row, depth.clone(), terms, &mut numbers[..places]);
                numbers[places..stride].fill(0);
                used = used.max(terms.used(numbers));
            }
            numbers[rows.len() * stride..width * stride].fill(0);
            let words = &mut self.words.get_mut()[(panel * self.pairs + skipped) * width..][..pairs * width];
            transpose(self.rows.get(), stride / 2, pairs, words, width);
        }
        self.note(behind, pairs, used);
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

/// The bits of numbers as three terms, group by group.
fn split_all(numbers: &[f32], places: &mut [u16]) {
    let (whole, rest) = numbers.as_chunks::<GROUP>();
    let (groups, last) = places[..Terms::Three.places(numbers.len())].split_at_mut(3 * GROUP * whole.len());
    split_groups(whole, cast_slice_mut(groups));
    if let [last] = cast_slice_mut(last) {
        let mut numbers = [0.0; GROUP];
        numbers[..rest.len()].copy_from_slice(rest);
        split_groups(&[numbers], std::slice::from_mut(last));
    }
}

/// Into one row of three terms' groups each.
fn split_groups(numbers: &[[f32; GROUP]], places: &mut [[[u16; GROUP]; 3]]) {
    split(numbers.iter().zip(places.iter_mut().map(|place| place.each_mut())));
}

/// Three terms of each group.
fn split<'a>(groups: impl Iterator<Item = (&'a [f32; GROUP], [&'a mut [u16; GROUP]; 3])>) {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::level() == crate::simd::Level::Avx512 && super::avx512::available() {
        // SAFETY: the processor has the instructions.
        return unsafe { super::avx512::split(groups) };
    }
    for (numbers, [first, second, third]) in groups {
        for (((&number, first), second), third) in numbers.iter().zip(first).zip(second).zip(third) {
            *first = round(number);
            let rest = number - widened(*first);
            *second = round(rest);
            *third = round(rest - widened(*second));
        }
    }
}

simd_fn! {
    /// Whether any of the second and of the third terms of a row is not zero.
    fn last_terms(places: &[u16]) -> [bool; 2] {
        let _ = FMA;
        let mut bits = [[0u16; GROUP]; 2];
        for [_, second, third] in cast_slice::<u16, [[u16; GROUP]; 3]>(places) {
            for (bits, terms) in bits.iter_mut().zip([second, third]) {
                bits.iter_mut().zip(terms).for_each(|(bits, term)| *bits |= term);
            }
        }
        bits.map(|bits| bits.iter().any(|&bits| bits != 0))
    }
}

#[inline(always)]
fn widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
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
