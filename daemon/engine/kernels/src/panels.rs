//! Products in `f32` by AVX2: the right side is put in order as it is decoded, in panels whose sums fit the registers, and
//! the left side is read where it lies. The `gemm` crate, which multiplies elsewhere, first needs the right side whole, and then
//! orders it itself; and its parallel loops know nothing of what lies in whose cache.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::hint::black_box;
use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::SharedMut;
use crate::matmul::{Piece, SHARED, View, Write, parts, parts_of};
use crate::packed::{FEW_TOKENS, Tiles};
use crate::simd;

/// Rows and columns of a tile, whose sums take 12 of the 16 registers.
const ROWS: usize = 6;
const PANEL: usize = 2 * LANES;
const LANES: usize = 8;
/// Rows of the left side that stay in the second-level cache while a slab goes past them.
const BLOCK: usize = 4 * ROWS;
/// Numbers of a slab of the right side, which stays there while all rows go past it: 256 KiB.
const SLAB: usize = 64 << 10;
/// Columns of slabs are a multiple of this: half of most forms' blocks at least, which are decoded whole.
const WHOLE: usize = 32;
/// The inner dimension is taken in parts of this length. Each is a pass over the output.
const DEPTH: usize = 768;
/// So much of the right side is decoded at a time: 16 KiB, and no form's block is cut.
const DECODED: usize = 256;
/// A thread's share has at least as many columns, and at least as many rows.
const FEW_COLS: usize = 64;
const FEW_ROWS: usize = 96;

/// The right side of a product.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) matrix: &'a dyn Tiles,
    pub(crate) transposed: bool,
}

impl Right<'_> {
    /// `[inner, cols]`.
    fn dims(self) -> [usize; 2] {
        let [rows, cols] = self.matrix.dims();
        if self.transposed { [cols, rows] } else { [rows, cols] }
    }
}

/// Whether this is how so many rows are multiplied.
pub(crate) fn are_used(rows: usize) -> bool {
    rows > FEW_TOKENS && simd::level() == simd::Level::Avx2
}

/// `output (=|+=) scale · (left · right + more.0 · more.1)`, row-major without gaps, by all threads.
pub(crate) fn multiply(
    output: &mut [f32],
    write: Write,
    scale: f32,
    left: View<'_>,
    right: Right<'_>,
    more: Option<(View<'_>, Right<'_>)>,
) {
    assert!(simd::level() == simd::Level::Avx2);
    let ([rows, inner], [right_inner, cols]) = (left.dims(), right.dims());
    assert_eq!(inner, right_inner);
    assert!(output.len() >= rows * cols);
    // At least one, which writes zeros where there is nothing to add up.
    let mut passes: Vec<_> = parts(inner.max(1), depth(inner))
        .map(|part| vec![Part { left, right, depth: part.start..part.end.min(inner) }])
        .collect();
    if let (Some(last), Some((left, right))) = (passes.last_mut(), more) {
        assert!(left.dims()[0] == rows && right.dims() == [left.dims()[1], cols] && !left.is_transposed());
        last.push(Part { left, right, depth: 0..left.dims()[1] });
    }
    let output = SharedMut::new(output);
    share([rows, inner, cols]).into_par_iter().with_max_len(1).for_each(|piece| {
        // SAFETY: inside the output.
        let start = unsafe { output.at(piece.rows.start * cols + piece.cols.start) };
        for (index, pass) in passes.iter().enumerate() {
            let write = if index == 0 { write } else { Write::Accumulate };
            let output = Output { start, stride: cols, write, scale };
            // SAFETY: `level` returns only what the processor has; the piece is this task's alone.
            BUFFERS.with_borrow_mut(|buffers| unsafe { buffers.multiply(pass, &piece, output) });
        }
    });
}

/// A part of the inner dimension of two sides.
struct Part<'a> {
    left: View<'a>,
    right: Right<'a>,
    depth: Range<usize>,
}

/// Of the parts of an inner dimension.
fn depth(inner: usize) -> usize {
    inner.div_ceil(inner.div_ceil(DEPTH).max(1)).next_multiple_of(LANES).max(1)
}

/// Each thread makes its own columns of the output, so that it alone puts the right side of these in order, a slab after the
/// other; where there are few columns, its own rows.
fn share([rows, inner, cols]: [usize; 3]) -> Vec<Piece> {
    let threads = if rows * inner * cols < SHARED { 1 } else { rayon::current_num_threads() };
    let of_cols = (cols / FEW_COLS).clamp(1, threads);
    // Twice as many where rows are shared: a thread that is held up leaves the others something to do.
    let of_rows = if of_cols == threads { 1 } else { (2 * threads).div_ceil(of_cols).min(rows.div_ceil(FEW_ROWS)) };
    let cut = |len: usize, count: usize, whole: usize| len.div_ceil(count.max(1)).next_multiple_of(whole).max(1);
    let widest = (SLAB / depth(inner)).next_multiple_of(PANEL);
    let mut pieces = Vec::new();
    for rows in parts(rows, cut(rows, of_rows, ROWS)) {
        for cols in parts(cols, cut(cols, of_cols, PANEL)) {
            let slab = cut(cols.len(), cols.len().div_ceil(widest), WHOLE);
            pieces.extend(parts_of(cols, slab).map(|cols| Piece { rows: rows.clone(), cols }));
        }
    }
    pieces
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

#[derive(Default)]
struct Buffers {
    /// The right side's slab: panel by panel, in each row by row of the inner dimension. What lies behind the last column is zero.
    panels: Vec<f32>,
    /// What is decoded before it is put there.
    decoded: Vec<f32>,
    /// Rows of a left side whose columns lie without gaps, in groups of [`ROWS`].
    left: Vec<f32>,
}

/// Where a piece goes.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    /// From one row to the next.
    stride: usize,
    write: Write,
    scale: f32,
}

/// The left side of a tile, and the panel that it is multiplied with.
#[derive(Clone, Copy)]
struct Factors {
    left: *const f32,
    /// From one row to the next, and from one column to the next.
    strides: [usize; 2],
    panel: *const f32,
    depth: usize,
}

/// Parts that are multiplied in one pass over the output.
const PARTS: usize = 2;

impl Buffers {
    /// Of one pass.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA, and the output's places are the caller's alone.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn multiply(&mut self, pass: &[Part<'_>], piece: &Piece, output: Output) {
        let (len, width) = (pass.iter().map(|part| part.depth.len()).sum::<usize>() * PANEL, piece.cols.len());
        grow(&mut self.panels, len * width.div_ceil(PANEL));
        let mut start = 0;
        for Part { right, depth, .. } in pass {
            let place = Place { panel: len, start };
            match right.transposed {
                true => self.fill_transposed(right.matrix, depth.clone(), piece.cols.clone(), place),
                false => self.fill(right.matrix, depth.clone(), piece.cols.clone(), place),
            }
            start += depth.len() * PANEL;
        }
        for block in parts_of(piece.rows.clone(), BLOCK) {
            let Part { left, depth, .. } = &pass[0];
            if left.is_transposed() {
                order_rows(left.part(block.clone(), depth.clone()), &mut self.left);
            }
            for (panel, col) in (0..width).step_by(PANEL).enumerate() {
                let panel = &self.panels[panel * len..][..len];
                for row in block.clone().step_by(ROWS) {
                    let size = [ROWS.min(block.end - row), PANEL.min(width - col)];
                    let at = (row - piece.rows.start) * output.stride + col;
                    // SAFETY: inside the piece.
                    let output = Output { start: unsafe { output.start.add(at) }, ..output };
                    let factors = self.factors(pass, panel, row..row + size[0], block.start);
                    // SAFETY: both sides have as many rows and columns.
                    unsafe { tile(factors, size, output) };
                }
            }
        }
    }

    /// Some rows of a block, which starts with row `block`, and a panel.
    fn factors(&self, pass: &[Part<'_>], mut panel: &[f32], rows: Range<usize>, block: usize) -> [Factors; PARTS] {
        let none = Factors { left: std::ptr::null(), strides: [0; 2], panel: std::ptr::null(), depth: 0 };
        std::array::from_fn(|index| {
            let Some(Part { left, depth, .. }) = pass.get(index) else { return none };
            let (of_part, rest) = panel.split_at(depth.len() * PANEL);
            panel = rest;
            let (left, strides) = if left.is_transposed() {
                (&self.left[(rows.start - block) * depth.len()..], [1, ROWS])
            } else {
                let left = left.part(rows.clone(), depth.clone());
                (left.elements(), left.strides())
            };
            Factors { left: left.as_ptr(), strides, panel: of_part.as_ptr(), depth: depth.len() }
        })
    }

    /// Of a matrix `[inner, columns]`.
    #[target_feature(enable = "avx2,fma")]
    fn fill(&mut self, matrix: &dyn Tiles, depth: Range<usize>, cols: Range<usize>, place: Place) {
        let width = cols.len();
        grow(&mut self.decoded, LANES * width);
        for (index, rows) in parts_of(depth, LANES).enumerate() {
            let decoded = &mut self.decoded[..rows.len() * width];
            matrix.decode_tile(rows, cols.clone(), decoded);
            for (panel, cols) in parts(width, PANEL).enumerate() {
                let places = &mut self.panels[place.start + panel * place.panel + index * LANES * PANEL..];
                for (places, row) in places.chunks_exact_mut(PANEL).zip(decoded.chunks_exact(width)) {
                    match row[cols.clone()].first_chunk::<PANEL>() {
                        Some(whole) => places.copy_from_slice(whole),
                        None => {
                            places[..cols.len()].copy_from_slice(&row[cols.clone()]);
                            places[cols.len()..].fill(0.0);
                        }
                    }
                }
            }
        }
    }

    /// Of a matrix `[columns, inner]`.
    #[target_feature(enable = "avx2,fma")]
    fn fill_transposed(&mut self, matrix: &dyn Tiles, depth: Range<usize>, cols: Range<usize>, place: Place) {
        grow(&mut self.decoded, PANEL * DECODED);
        for (panel, rows) in parts_of(cols, PANEL).enumerate() {
            let places = &mut self.panels[place.start + panel * place.panel..];
            for (part, places) in parts_of(depth.clone(), DECODED).zip(places.chunks_mut(PANEL * DECODED)) {
                let len = part.len();
                let (decoded, nothing) = self.decoded[..PANEL * len].split_at_mut(rows.len() * len);
                matrix.decode_tile(rows.clone(), part, decoded);
                nothing.fill(0.0);
                transpose(&self.decoded[..PANEL * len], len, &mut places[..PANEL * len]);
            }
        }
    }
}

/// Where a factor's rows go: from one panel to the next, and where in each they begin.
#[derive(Clone, Copy)]
struct Place {
    panel: usize,
    start: usize,
}

fn grow(numbers: &mut Vec<f32>, len: usize) {
    if numbers.len() < len {
        numbers.resize(len, 0.0);
    }
}

/// Up to [`BLOCK`] rows of a matrix whose columns lie without gaps: groups of [`ROWS`], and of a group column by column.
fn order_rows(matrix: View<'_>, output: &mut Vec<f32>) {
    let ([rows, cols], (numbers, stride)) = (matrix.dims(), matrix.t().lines());
    grow(output, cols * rows.next_multiple_of(ROWS));
    for col in 0..cols {
        for (group, numbers) in numbers[col * stride..][..rows].chunks(ROWS).enumerate() {
            output[(group * cols + col) * ROWS..][..numbers.len()].copy_from_slice(numbers);
        }
    }
}

/// [`PANEL`] rows of `depth` numbers into a panel.
#[target_feature(enable = "avx2,fma")]
fn transpose(rows: &[f32], depth: usize, panel: &mut [f32]) {
    assert!(rows.len() == PANEL * depth && panel.len() == PANEL * depth);
    let whole = depth / LANES * LANES;
    for col in [0, LANES] {
        for at in (0..whole).step_by(LANES) {
            // SAFETY: `col + 7` is one of the rows and `at + 7` lies inside each.
            let square =
                std::array::from_fn(|row| unsafe { _mm256_loadu_ps(rows.as_ptr().add((col + row) * depth + at)) });
            for (index, vector) in transpose_square(square).into_iter().enumerate() {
                // SAFETY: the places of these rows in the panel.
                unsafe { _mm256_storeu_ps(panel.as_mut_ptr().add((at + index) * PANEL + col), vector) };
            }
        }
    }
    for at in whole..depth {
        panel[at * PANEL..][..PANEL].iter_mut().enumerate().for_each(|(col, place)| *place = rows[col * depth + at]);
    }
}

/// 8 rows of 8 numbers.
#[target_feature(enable = "avx2,fma")]
fn transpose_square(rows: [__m256; LANES]) -> [__m256; LANES] {
    // Inside each half of 128 bits: 2 × 2 numbers, then 2 × 2 pairs of them.
    let mut pairs = rows;
    for pair in 0..LANES / 2 {
        let [a, b] = [rows[2 * pair], rows[2 * pair + 1]];
        pairs[2 * pair] = _mm256_unpacklo_ps(a, b);
        pairs[2 * pair + 1] = _mm256_unpackhi_ps(a, b);
    }
    let doubles = pairs.map(|pair| _mm256_castps_pd(pair));
    let mut fours = doubles;
    for four in [0, 4] {
        fours[four] = _mm256_unpacklo_pd(doubles[four], doubles[four + 2]);
        fours[four + 1] = _mm256_unpackhi_pd(doubles[four], doubles[four + 2]);
        fours[four + 2] = _mm256_unpacklo_pd(doubles[four + 1], doubles[four + 3]);
        fours[four + 3] = _mm256_unpackhi_pd(doubles[four + 1], doubles[four + 3]);
    }
    // `fours[i]` and `fours[4 + i]` hold columns i and i + 4, of the upper and of the lower rows.
    let fours = fours.map(|four| _mm256_castpd_ps(four));
    std::array::from_fn(|col| match col {
        0..4 => _mm256_permute2f128_ps::<0x20>(fours[col], fours[4 + col]),
        _ => _mm256_permute2f128_ps::<0x31>(fours[col - 4], fours[col]),
    })
}

/// Chooses the code for as many rows and vectors as there are.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(factors: [Factors; PARTS], [rows, cols]: [usize; 2], output: Output) {
    macro_rules! choose {
        ($($rows:literal)*) => {
            match (rows, cols.div_ceil(LANES)) {
                // SAFETY: the caller's promise.
                $(
                    ($rows, 1) => unsafe { sums::<$rows, 1>(factors, cols, output) },
                    ($rows, _) => unsafe { sums::<$rows, 2>(factors, cols, output) },
                )*
                _ => unreachable!("a tile has one to six rows"),
            }
        };
    }
    choose!(1 2 3 4 5 6)
}

/// `R` rows times `V` vectors, all of whose sums stay in registers.
#[target_feature(enable = "avx2,fma")]
unsafe fn sums<const R: usize, const V: usize>(factors: [Factors; PARTS], cols: usize, output: Output) {
    for row in 0..R {
        // The output is read or written after all that is multiplied: time enough for it to come.
        _mm_prefetch::<_MM_HINT_T0>(output.start.wrapping_add(row * output.stride).cast());
        _mm_prefetch::<_MM_HINT_T0>(output.start.wrapping_add(row * output.stride + cols - 1).cast());
    }
    let mut sums = [[_mm256_setzero_ps(); V]; R];
    for Factors { left, strides: [row_stride, col_stride], panel, depth } in factors {
        // Opaque, or the compiler makes each address from the one before: a chain as long as what it feeds.
        let left: [*const f32; R] = std::array::from_fn(|row| black_box(left.wrapping_add(row * row_stride)));
        let (mut at, mut panel) = (0, panel);
        for _ in 0..depth {
            // SAFETY: a panel holds `PANEL` numbers for each of the inner dimension.
            let vectors: [__m256; V] = std::array::from_fn(|v| unsafe { _mm256_loadu_ps(panel.add(v * LANES)) });
            for (left, sums) in left.iter().zip(&mut sums) {
                // SAFETY: the left side holds as many rows and columns.
                let factor = _mm256_broadcast_ss(unsafe { &*left.add(at) });
                for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                    *sum = _mm256_fmadd_ps(factor, vector, *sum);
                }
            }
            at += col_stride;
            panel = panel.wrapping_add(PANEL);
        }
    }
    let scale = _mm256_set1_ps(output.scale);
    for (row, sums) in sums.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            let result = _mm256_mul_ps(sum, scale);
            // SAFETY: no more columns are read or written than the row has there, and it is the caller's.
            unsafe { store(output.start.add(row * output.stride + v * LANES), cols - v * LANES, output.write, result) };
        }
    }
}

/// Up to [`LANES`] numbers to their place.
#[target_feature(enable = "avx2,fma")]
unsafe fn store(place: *mut f32, cols: usize, write: Write, result: __m256) {
    // SAFETY: the caller's promise; the mask keeps inside the row.
    unsafe {
        if cols >= LANES {
            let result =
                if write == Write::Accumulate { _mm256_add_ps(result, _mm256_loadu_ps(place)) } else { result };
            return _mm256_storeu_ps(place, result);
        }
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(cols as i32), lanes);
        let result =
            if write == Write::Accumulate { _mm256_add_ps(result, _mm256_maskload_ps(place, mask)) } else { result };
        _mm256_maskstore_ps(place, mask, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::testing::every_form;
    use crate::simd::testing::at_every_level;
    use crate::testing::{random, transposed, values};

    #[test]
    fn products_of_any_size_are_right_however_their_sides_lie() {
        at_every_level(|level| {
            if level != simd::Level::Avx2 {
                return;
            }
            // Rests of rows, of panels, of slabs and of squares; more than one pass; what threads share by rows, and by columns.
            let shapes = [[5, 1, 1], [7, 9, 17], [24, 40, 16], [200, 70, 20], [50, 300, 200], [30, 1700, 330]];
            for ([rows, inner, cols], rank) in shapes.into_iter().flat_map(|shape| [0, 1, 5].map(|rank| (shape, rank)))
            {
                let of = |dims: [usize; 2], seed| values(random(dims, seed));
                let [a, b] = [of([rows, inner], 1), of([inner, cols], 2)];
                let [low, below] = [of([rows, rank.max(1)], 3), of([rank.max(1), cols], 4)];
                let [a_t, b_t, below_t] =
                    [(&a, inner), (&b, cols), (&below, cols)].map(|(x, cols)| transposed(x, cols));
                for (left_t, right_t) in [(false, false), (false, true), (true, false), (true, true)] {
                    let left = if left_t { View::new(&a_t, [inner, rows]).t() } else { View::new(&a, [rows, inner]) };
                    let lying =
                        |x, x_t, rows| if right_t { View::new(x_t, [cols, rows]) } else { View::new(x, [rows, cols]) };
                    let (right, factor) = (lying(&b, &b_t, inner), lying(&below, &below_t, rank.max(1)));
                    let [right, factor] = [&right, &factor].map(|matrix| Right { matrix, transposed: right_t });
                    let more = (rank > 0).then(|| (View::new(&low, [rows, rank]), factor));
                    let mut output = vec![f32::NAN; rows * cols];
                    multiply(&mut output, Write::Replace, 1.5, left, right, more);
                    multiply(&mut output, Write::Accumulate, -0.5, left, right, more);
                    for (at, &got) in output.iter().enumerate().step_by(if rows * cols > 5000 { 7 } else { 1 }) {
                        let (row, col) = (at / cols, at % cols);
                        let sum = |a: &[f32], b: &[f32], inner: usize| -> f64 {
                            (0..inner).map(|k| f64::from(a[row * inner + k]) * f64::from(b[k * cols + col])).sum()
                        };
                        let want = sum(&a, &b, inner) + if rank > 0 { sum(&low, &below, rank) } else { 0.0 };
                        assert!(
                            (f64::from(got) - want).abs() < 1e-4 * (inner as f64).sqrt(),
                            "{rows}x{inner}x{cols} + {rank}, {left_t} {right_t}, at {at}: {got}, want {want}"
                        );
                    }
                }
            }
        });
    }

    #[test]
    fn a_row_is_the_same_whatever_is_multiplied_beside_it() {
        at_every_level(|level| {
            if level != simd::Level::Avx2 {
                return;
            }
            let [rows, inner, cols] = [130, 256, 96];
            let x = values(random([rows, inner], 1));
            let run = |matrix: &dyn Tiles, rows: usize| {
                let mut output = vec![f32::NAN; rows * cols];
                let left = View::new(&x[..rows * inner], [rows, inner]);
                multiply(&mut output, Write::Replace, 1.0, left, Right { matrix, transposed: true }, None);
                output
            };
            for (name, packed) in every_form([cols, inner], 2) {
                let decoded = packed.to_f32();
                let all = run(&packed, rows);
                assert_eq!(all, run(&View::new(&decoded, [cols, inner]), rows), "{name}");
                assert_eq!(all[..5 * cols], run(&packed, 5), "{name}");
            }
        });
    }
}
