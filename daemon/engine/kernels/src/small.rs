//! Products of tiles that lie in the processor's cache, multiplied where they are: a common matrix product first puts both
//! sides in order, which pays where each number is used hundreds of times, and not within a head.

use pulp::{Simd, WithSimd};

use crate::buffer::SharedMut;
use crate::matmul::{View, Write};
use crate::simd;

/// Rows whose sums stay in registers.
pub(crate) const ROWS: usize = 6;
/// `destination (=|+=) scale · a · b`, into rows that start at `offset` and lie `stride` apart. The rows of `b` are without
/// gaps.
///
/// # Safety
/// The rows lie inside `destination`'s slice and no other task touches them meanwhile.
pub(crate) unsafe fn multiply(
    destination: SharedMut,
    offset: usize,
    stride: usize,
    write: Write,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
) {
    assert_eq!(a.dims()[1], b.dims()[0]);
    assert!(!b.is_transposed());
    // SAFETY: the caller's promise.
    let product = Product { output: unsafe { destination.at(offset) }, stride, write, scale, a, b };
    match simd::level() {
        // SAFETY: `level` returns only what the processor has.
        #[cfg(target_arch = "x86_64")]
        simd::Level::Avx512 => Simd::vectorize(unsafe { pulp::x86::V4::new_unchecked() }, product),
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        simd::Level::Avx2 => Simd::vectorize(unsafe { pulp::x86::V3::new_unchecked() }, product),
        #[cfg(target_arch = "x86_64")]
        simd::Level::Scalar => pulp::Scalar128b.vectorize(product),
        #[cfg(not(target_arch = "x86_64"))]
        _ => pulp::Arch::new().dispatch(product),
    }
}

/// Whoever makes one owns the rows of the output.
struct Product<'a> {
    output: *mut f32,
    stride: usize,
    write: Write,
    scale: f32,
    a: View<'a>,
    b: View<'a>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as leave registers for the vectors of `b` and a number of `a`.
        if S::REGISTER_COUNT >= 32 { self.columns::<S, 4>(simd) } else { self.columns::<S, 2>(simd) }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn columns<S: Simd, const V: usize>(self, simd: S) {
        let (lanes, cols) = (lanes::<S>(), self.b.dims()[1]);
        let mut col = 0;
        while col + V * lanes <= cols {
            self.rows::<S, V>(simd, col, V * lanes);
            col += V * lanes;
        }
        while col < cols {
            let width = lanes.min(cols - col);
            self.rows::<S, 1>(simd, col, width);
            col += width;
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const V: usize>(&self, simd: S, col: usize, width: usize) {
        let rows = self.a.dims()[0];
        for row in (0..rows).step_by(ROWS) {
            match rows - row {
                1 => self.sums::<S, 1, V>(simd, row, col, width),
                2 => self.sums::<S, 2, V>(simd, row, col, width),
                3 => self.sums::<S, 3, V>(simd, row, col, width),
                4 => self.sums::<S, 4, V>(simd, row, col, width),
                5 => self.sums::<S, 5, V>(simd, row, col, width),
                _ => self.sums::<S, ROWS, V>(simd, row, col, width),
            }
        }
    }

    /// `R` rows of `width` columns, which are `V` whole vectors or a part of one.
    #[inline(always)]
    fn sums<S: Simd, const R: usize, const V: usize>(&self, simd: S, row: usize, col: usize, width: usize) {
        let (lanes, inner) = (lanes::<S>(), self.a.dims()[1]);
        let (a, [row_stride, inner_stride]) = (self.a.part(row..row + R, 0..inner), self.a.strides());
        let (b, b_stride) = self.b.part(0..inner, col..col + width).lines();
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for k in 0..inner {
            let vectors: [S::f32s; V] = if width == V * lanes {
                // SAFETY: `part` checked that rows of `width` numbers lie in `b`; no vector asks for an alignment.
                std::array::from_fn(|v| unsafe {
                    b.as_ptr().add(k * b_stride + v * lanes).cast::<S::f32s>().read_unaligned()
                })
            } else {
                [simd.partial_load_f32s(&b[k * b_stride..][..width]); V]
            };
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `part` checked that `R` rows of `inner` numbers lie in `a`.
                let factor = simd.splat_f32s(unsafe { *a.elements().get_unchecked(r * row_stride + k * inner_stride) });
                for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                    *sum = simd.mul_add_e_f32s(factor, vector, *sum);
                }
            }
        }
        let scale = simd.splat_f32s(self.scale);
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                let width = lanes.min(width - v * lanes);
                // SAFETY: the rows of the output are this product's alone.
                let place = unsafe {
                    std::slice::from_raw_parts_mut(self.output.add((row + r) * self.stride + col + v * lanes), width)
                };
                let result = simd.mul_f32s(sum, scale);
                let result = match self.write {
                    Write::Replace => result,
                    Write::Accumulate => simd.add_f32s(result, simd.partial_load_f32s(place)),
                };
                simd.partial_store_f32s(place, result);
            }
        }
    }
}

const fn lanes<S: Simd>() -> usize {
    size_of::<S::f32s>() / size_of::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::testing::at_every_level;

    fn number_at(matrix: View<'_>, row: usize, col: usize) -> f32 {
        let [row_stride, col_stride] = matrix.strides();
        matrix.elements()[row * row_stride + col * col_stride]
    }

    #[test]
    fn products_of_any_size_and_stride_are_right() {
        at_every_level(|level| {
            for [rows, inner, cols] in [[1, 1, 1], [6, 64, 64], [7, 5, 33], [13, 64, 96], [4, 3, 130]] {
                let number = |i: usize| (i as f32 * 0.37).sin();
                let gap = 3;
                let a: Vec<f32> = (0..rows * (inner + gap)).map(number).collect();
                let transposed: Vec<f32> = (0..inner * rows).map(|i| a[i % rows * (inner + gap) + i / rows]).collect();
                let b: Vec<f32> = (0..inner * (cols + gap)).map(|i| number(i + 7)).collect();
                let b = View::strided(&b, [inner, cols], cols + gap);
                let sides = [View::strided(&a, [rows, inner], inner + gap), View::new(&transposed, [inner, rows]).t()];
                for (a, write) in sides.into_iter().flat_map(|a| [(a, Write::Replace), (a, Write::Accumulate)]) {
                    let mut output: Vec<f32> = (0..rows * (cols + gap)).map(number).collect();
                    let before = output.clone();
                    // SAFETY: the output is this test's and has as many rows.
                    unsafe { multiply(SharedMut::new(&mut output), 0, cols + gap, write, 0.5, a, b) };
                    for (at, (&got, &before)) in output.iter().zip(&before).enumerate() {
                        let (row, col) = (at / (cols + gap), at % (cols + gap));
                        let product = |k: usize| f64::from(number_at(a, row, k)) * f64::from(number_at(b, k, col));
                        let want = match write {
                            _ if col >= cols => f64::from(before),
                            Write::Replace => 0.5 * (0..inner).map(product).sum::<f64>(),
                            Write::Accumulate => f64::from(before) + 0.5 * (0..inner).map(product).sum::<f64>(),
                        };
                        assert!((f64::from(got) - want).abs() < 1e-5, "{level:?} {rows}x{inner}x{cols} [{row}, {col}]");
                    }
                }
            }
        });
    }
}
