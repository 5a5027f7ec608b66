//! Strided matrix products on host memory. The micro-kernels are the `gemm` crate's, chosen at run time
//! (AVX-512, AVX2+FMA, NEON, scalar).

use std::ops::Range;

use gemm::Parallelism;

use crate::buffer::SharedMut;

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

/// How many threads one product may use.
#[derive(Clone, Copy)]
pub(crate) enum Threads {
    /// The caller is already one of many parallel tasks.
    One,
    All,
}

/// `destination (=|+=) scale · a · b`, row-major without gaps.
pub(crate) fn matmul(destination: &mut [f32], write: Write, scale: f32, a: View<'_>, b: View<'_>) {
    assert!(destination.len() >= a.rows * b.cols);
    let destination_stride = b.cols;
    // SAFETY: the whole destination is borrowed mutably and large enough.
    unsafe { matmul_into(SharedMut::new(destination), 0, destination_stride, write, scale, a, b, Threads::All) }
}

/// As [`matmul`], into rows that start at `offset` and lie `stride` apart.
///
/// # Safety
/// The rows lie inside `destination`'s slice and no other task touches them meanwhile.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn matmul_into(
    destination: SharedMut,
    offset: usize,
    stride: usize,
    write: Write,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
    threads: Threads,
) {
    assert_eq!(a.cols, b.rows);
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
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
            parallelism,
        );
    }
}
