//! Strided matrix products on host memory. The micro-kernels are the `gemm` crate's, chosen at run time (AVX-512, NEON,
//! scalar); with AVX2 alone, those of `panels.rs`.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use crate::buffer::SharedMut;
#[cfg(target_arch = "x86_64")]
use crate::panels::{self, Right};

/// A read-only matrix: `rows × cols` elements at `row_stride` and `col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    elements: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Row-major, without gaps.
    pub(crate) fn new(elements: &'a [f32], [rows, cols]: [usize; 2]) -> Self {
        Self::strided(elements, [rows, cols], cols)
    }

    /// Row-major, with `row_stride` elements from one row to the next.
    pub(crate) fn strided(elements: &'a [f32], [rows, cols]: [usize; 2], row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= elements.len());
        Self { elements, rows, cols, row_stride, col_stride: 1 }
    }

    /// `[rows, cols]`.
    pub(crate) fn dims(self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Whether columns, not rows, lie without gaps.
    pub(crate) fn is_transposed(self) -> bool {
        self.col_stride != 1
    }

    /// The elements from the first row on, and how many there are from one row to the next. Of a matrix whose rows lie
    /// without gaps.
    pub(crate) fn lines(self) -> (&'a [f32], usize) {
        assert!(!self.is_transposed());
        (self.elements, self.row_stride)
    }

    /// Elements from one row to the next, and from one column to the next.
    pub(crate) fn strides(self) -> [usize; 2] {
        [self.row_stride, self.col_stride]
    }

    /// Where it starts; of a matrix of one row, its elements.
    pub(crate) fn elements(self) -> &'a [f32] {
        self.elements
    }

    /// Some of its rows and columns.
    pub(crate) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols);
        let first = rows.start * self.row_stride + cols.start * self.col_stride;
        Self { elements: &self.elements[first..], rows: rows.len(), cols: cols.len(), ..self }
    }

    /// The transpose; no element moves.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// What to do with the elements that are already there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Replace,
    Accumulate,
}

/// Below so many multiply-adds a product is not worth waking a thread for.
pub(crate) const SHARED: usize = 1 << 17;
/// Every micro-kernel's width divides these.
const ROWS_OF_A_PIECE: usize = 12;
const COLS_OF_A_PIECE: usize = 16;

/// `destination (=|+=) scale · a · b`, row-major without gaps, by all threads.
pub(crate) fn matmul(destination: &mut [f32], write: Write, scale: f32, a: View<'_>, b: View<'_>) {
    let (rows, inner, cols) = (a.rows, a.cols, b.cols);
    assert!(destination.len() >= rows * cols);
    #[cfg(target_arch = "x86_64")]
    if panels::are_used(rows) {
        let transposed = b.is_transposed();
        let lines = if transposed { b.t() } else { b };
        return panels::multiply(destination, write, scale, a, Right { matrix: &lines, transposed }, None);
    }
    let (piece_rows, piece_cols) = size_of_piece([rows, inner, cols], rayon::current_num_threads());
    let destination = SharedMut::new(destination);
    pieces(rows, piece_rows, cols, piece_cols).into_par_iter().for_each(|piece| {
        let first = piece.rows.start * cols + piece.cols.start;
        let (a, b) = (a.part(piece.rows, 0..inner), b.part(0..inner, piece.cols));
        // SAFETY: the whole destination is borrowed mutably and large enough, and this piece is this task's alone.
        unsafe { matmul_into(destination, first, cols, write, scale, a, b) };
    });
}

/// A part of the output that one task makes.
pub(crate) struct Piece {
    pub(crate) rows: Range<usize>,
    pub(crate) cols: Range<usize>,
}

/// The whole output in pieces of so many rows and columns. All of some rows come one after the other: neighbours mostly go to
/// one thread, and that keeps to its rows.
pub(crate) fn pieces(rows: usize, piece_rows: usize, cols: usize, piece_cols: usize) -> Vec<Piece> {
    let of_rows = |rows: Range<usize>| parts(cols, piece_cols).map(move |cols| Piece { rows: rows.clone(), cols });
    parts(rows, piece_rows).flat_map(of_rows).collect()
}

/// Rows and columns of a piece. A task puts both of its sides in order for the micro-kernel: that
/// of the weights, which has to be turned, costs most, so tasks share its columns, unless these are few.
fn size_of_piece([rows, inner, cols]: [usize; 3], threads: usize) -> (usize, usize) {
    if threads == 1 || rows * inner * cols < SHARED {
        return (rows.max(1), cols.max(1));
    }
    // Twice as many pieces as threads: one that is held up leaves the other something to do.
    let part = |len: usize, of_a_piece: usize| len.div_ceil(2 * threads).next_multiple_of(of_a_piece);
    if inner >= 64 && cols >= rows / 4 {
        (rows, part(cols, COLS_OF_A_PIECE))
    } else {
        (part(rows, ROWS_OF_A_PIECE), cols)
    }
}

/// `0..len` in parts of `size`; the last may be smaller.
pub(crate) fn parts(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    parts_of(0..len, size)
}

/// The same of any range.
pub(crate) fn parts_of(Range { start, end }: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    (start..end).step_by(size).map(move |start| start..end.min(start + size))
}

/// As [`matmul`], by the calling thread alone, into rows that start at `offset` and lie `stride` apart.
///
/// # Safety
/// The rows lie inside `destination`'s slice and no other task touches them meanwhile.
pub(crate) unsafe fn matmul_into(
    destination: SharedMut,
    offset: usize,
    stride: usize,
    write: Write,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
) {
    assert_eq!(a.cols, b.rows);
    // SAFETY: both views were bounds-checked when made; the destination is the caller's promise.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            destination.at(offset),
            1,
            stride as isize,
            write == Write::Accumulate,
            a.elements.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.elements.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, values};

    #[test]
    fn pieces_make_the_whole_product() {
        // Few columns and many, a short inner dimension, and what is not shared out at all.
        for [rows, inner, cols] in [[3, 5, 7], [50, 70, 130], [130, 100, 500], [700, 80, 20], [700, 8, 60]] {
            let (a, b) = (values(random([rows, inner], 1)), values(random([cols, inner], 2)));
            let a_columns: Vec<f32> = (0..inner * rows).map(|i| a[i % rows * inner + i / rows]).collect();
            let (a, a_columns) = (View::new(&a, [rows, inner]), View::new(&a_columns, [inner, rows]).t());
            let b = View::new(&b, [cols, inner]).t();
            let mut product = vec![f32::NAN; rows * cols];
            matmul(&mut product, Write::Replace, 1.5, a, b);
            matmul(&mut product, Write::Accumulate, 0.5, a_columns, b);
            for (at, &got) in product.iter().enumerate() {
                let (a, b) = (&a.elements[at / cols * inner..][..inner], &b.elements[at % cols * inner..][..inner]);
                let want: f64 = a.iter().zip(b).map(|(&a, &b)| 2.0 * f64::from(a) * f64::from(b)).sum();
                assert!((f64::from(got) - want).abs() < 1e-4, "{rows}x{inner}x{cols} at {at}: {got}, want {want}");
            }
        }
    }
}
