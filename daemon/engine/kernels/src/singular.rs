//! The largest singular values and vectors of a matrix, without the others: subspace iteration from a random start (Halko,
//! Martinsson & Tropp 2011, arXiv 0909.4061), and the small eigenproblem that is left by Jacobi's rotations.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::random;

/// Dimensions beyond the wanted ones, which speed up how fast those are found.
const SPARE: usize = 8;
/// Each one divides what does not belong by the squared ratio of singular values.
const ITERATIONS: usize = 4;
/// Jacobi converges quadratically; this many sweeps are never needed.
const SWEEPS: usize = 30;

/// The `rank` left singular vectors of `matrix`, `[short, long]`, with the largest singular values, as the columns of
/// `[short, rank]`. The largest number of each vector is positive: a vector that hardly changed keeps its sign.
pub fn leading(matrix: Tensor<2>, rank: usize) -> Vec<f32> {
    let short = matrix.dims()[0];
    let gram: Vec<f32> = matrix.clone().matmul(matrix.transpose()).into_data().try_into_vec().expect("it is f32");
    let gram: Vec<f64> = gram.into_iter().map(f64::from).collect();
    let width = (rank + SPARE).min(short);
    let mut basis: Vec<Vec<f64>> = (0..width).map(|vector| random(vector, short)).collect();
    orthonormalize(&mut basis);
    // Nothing to look for where the gradient is zero.
    if gram.iter().any(|&value| value != 0.0) {
        for _ in 0..ITERATIONS {
            basis = basis.par_iter().map(|vector| times(&gram, vector)).collect();
            orthonormalize(&mut basis);
        }
    }
    let images: Vec<Vec<f64>> = basis.par_iter().map(|vector| times(&gram, vector)).collect();
    let mut small: Vec<Vec<f64>> =
        basis.iter().map(|vector| images.iter().map(|image| dot(vector, image)).collect()).collect();
    let rotation = eigenvectors(&mut small);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| small[b][b].total_cmp(&small[a][a]));
    let mut vectors = vec![0.0; short * rank];
    for (column, &eigen) in order.iter().take(rank).enumerate() {
        let number = |row: usize| (0..width).map(|index| basis[index][row] * rotation[index][eigen]).sum::<f64>();
        let vector: Vec<f64> = (0..short).map(number).collect();
        let largest = vector.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or_default();
        vectors
            .chunks_exact_mut(rank)
            .zip(&vector)
            .for_each(|(line, value)| line[column] = (value * largest.signum()) as f32);
    }
    vectors
}

/// The part of a matrix that its largest singular values make: `left · diag(values) · right`.
#[derive(Debug, Clone)]
pub struct Truncated {
    /// `[rows, rank]`.
    pub left: Tensor<2>,
    /// The largest first.
    pub values: Vec<f32>,
    /// `[rank, cols]`.
    pub right: Tensor<2>,
}

/// How long [`truncated`] goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// So many iterations, as `torch.svd_lowrank`.
    Iterations(usize),
    /// Until the values stand still.
    Exact,
}

/// Relative changes of singular values below this are rounding.
const STILL: f64 = 1e-6;
/// Where a matrix has as many equal values, which of their vectors are taken does not matter.
const MOST_ITERATIONS: usize = 500;

/// The `rank` largest singular values of `matrix`, of which it must have as many, and their vectors.
pub fn truncated(matrix: Tensor<2>, rank: usize, effort: Effort) -> Truncated {
    let ([rows, cols], device) = (matrix.dims(), matrix.device());
    let (spare, most) = match effort {
        Effort::Iterations(iterations) => (SPARE, iterations),
        Effort::Exact => (rank + SPARE, MOST_ITERATIONS),
    };
    let short = rows.min(cols);
    assert!(rank <= short, "a matrix has no more singular values than its shorter side");
    let width = (rank + spare).min(short);
    let times = |vectors: &[Vec<f64>], matrix: &Tensor<2>| -> Vec<Vec<f64>> {
        let len = matrix.dims()[1];
        let images = to_matrix(vectors, &device).matmul(matrix.clone()).into_data();
        let images: Vec<f32> = images.try_into_vec().expect("it is f32");
        images.chunks_exact(len).map(|image| image.iter().copied().map(f64::from).collect()).collect()
    };
    let turned = matrix.clone().transpose();
    let mut right: Vec<Vec<f64>> = (0..width).map(|vector| random(vector, cols)).collect();
    let (mut iteration, mut before) = (0, Vec::new());
    loop {
        orthonormalize(&mut right);
        let mut left = times(&right, &turned);
        orthonormalize(&mut left);
        right = times(&left, &matrix);
        // Of the small matrix `leftᵀ · matrix`, whose singular values are those that are looked for.
        let row = |a: &Vec<f64>| right.iter().map(|b| dot(a, b)).collect::<Vec<_>>();
        let mut small: Vec<Vec<f64>> = right.par_iter().map(row).collect();
        let rotation = eigenvectors(&mut small);
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|&a, &b| small[b][b].total_cmp(&small[a][a]));
        order.truncate(rank);
        let values: Vec<f64> = order.iter().map(|&index| small[index][index].max(0.0).sqrt()).collect();
        let still = |(before, now): (&f64, &f64)| (now - before).abs() <= STILL * values[0];
        let settled = effort == Effort::Exact && !before.is_empty() && before.iter().zip(&values).all(still);
        if !(settled || width == short || iteration == most) {
            (iteration, before) = (iteration + 1, values);
            continue;
        }
        let turn = |vectors: &[Vec<f64>], index: usize| -> Vec<f64> {
            let len = vectors[0].len();
            let number = |place: usize| vectors.iter().enumerate().map(|(at, v)| v[place] * rotation[at][index]).sum();
            (0..len).into_par_iter().map(number).collect()
        };
        let lefts: Vec<Vec<f64>> = order.iter().map(|&index| turn(&left, index)).collect();
        let scaled = |(&index, &value): (&usize, &f64)| {
            let inverse = if value > 0.0 { 1.0 / value } else { 0.0 };
            turn(&right, index).into_iter().map(|number| number * inverse).collect()
        };
        let rights: Vec<Vec<f64>> = order.iter().zip(&values).map(scaled).collect();
        return Truncated {
            left: to_matrix(&lefts, &device).transpose(),
            values: values.into_iter().map(|value| value as f32).collect(),
            right: to_matrix(&rights, &device),
        };
    }
}

/// Vectors as the rows of a matrix.
fn to_matrix(vectors: &[Vec<f64>], device: &Device) -> Tensor<2> {
    let shape = [vectors.len(), vectors[0].len()];
    let numbers: Vec<f32> = vectors.iter().flatten().map(|&number| number as f32).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

/// Numbers in −1 to 1 that depend on nothing but their place.
fn random(vector: usize, len: usize) -> Vec<f64> {
    let number = |place| random::at(0, place) as f64 / u64::MAX as f64 * 2.0 - 1.0;
    (0..len).map(|index| number(vector * len + index)).collect()
}

/// A symmetric matrix times a vector.
fn times(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(vector.len()).map(|row| dot(row, vector)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gram-Schmidt, twice, so that rounding leaves no trace. A vector that the earlier ones contain becomes zero.
fn orthonormalize(vectors: &mut [Vec<f64>]) {
    for index in 0..vectors.len() {
        let (earlier, later) = vectors.split_at_mut(index);
        let vector = &mut later[0];
        let before = dot(vector, vector).sqrt();
        for _ in 0..2 {
            for other in &*earlier {
                let share = dot(other, vector);
                vector.iter_mut().zip(other).for_each(|(value, other)| *value -= share * other);
            }
        }
        let norm = dot(vector, vector).sqrt();
        let factor = if norm > before * 1e-10 { 1.0 / norm } else { 0.0 };
        vector.iter_mut().for_each(|value| *value *= factor);
    }
}

/// Rotates a symmetric matrix until it is diagonal; the columns of what is returned are its eigenvectors.
fn eigenvectors(matrix: &mut [Vec<f64>]) -> Vec<Vec<f64>> {
    let size = matrix.len();
    let mut vectors: Vec<Vec<f64>> =
        (0..size).map(|row| (0..size).map(|column| f64::from(u8::from(row == column))).collect()).collect();
    for _ in 0..SWEEPS {
        let off = |row: usize| matrix[row][..row].iter().map(|value| value * value).sum::<f64>();
        let diagonal: f64 = (0..size).map(|index| matrix[index][index].powi(2)).sum();
        if (0..size).map(off).sum::<f64>() <= diagonal * 1e-28 {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                rotate(matrix, &mut vectors, p, q);
            }
        }
    }
    vectors
}

/// Makes the entry at `[p, q]` zero (Golub & Van Loan, Matrix Computations, 8.5.2).
fn rotate(matrix: &mut [Vec<f64>], vectors: &mut [Vec<f64>], p: usize, q: usize) {
    if matrix[p][q] == 0.0 {
        return;
    }
    let tau = (matrix[q][q] - matrix[p][p]) / (2.0 * matrix[p][q]);
    let tangent = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = tangent * cosine;
    let turn = |line: &mut [f64]| {
        let (a, b) = (line[p], line[q]);
        line[p] = cosine * a - sine * b;
        line[q] = sine * a + cosine * b;
    };
    matrix.iter_mut().for_each(|line| turn(line));
    vectors.iter_mut().for_each(|line| turn(line));
    let (above, below) = matrix.split_at_mut(q);
    for (a, b) in above[p].iter_mut().zip(&mut below[0]) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix made of known singular vectors, of which 40 are more than the iteration holds at once.
    #[test]
    fn known_vectors_are_found_among_many() {
        let (short, long, rank) = (60, 90, 5);
        let mut left: Vec<Vec<f64>> = (0..40).map(|index| random(index, short)).collect();
        let mut right: Vec<Vec<f64>> = (0..40).map(|index| random(index + 100, long)).collect();
        orthonormalize(&mut left);
        orthonormalize(&mut right);
        let value = |row: usize, column: usize| {
            let part = |index: usize| 0.8f64.powi(index as i32) * left[index][row] * right[index][column];
            (0..40).map(part).sum::<f64>() as f32
        };
        let numbers: Vec<f32> = (0..short * long).map(|place| value(place / long, place % long)).collect();
        let matrix = Tensor::<2>::from_data(TensorData::new(numbers, [short, long]), &Device::flex());
        let found = leading(matrix, rank);
        for (index, left) in left.iter().take(rank).enumerate() {
            let vector: Vec<f64> = found.chunks_exact(rank).map(|line| f64::from(line[index])).collect();
            assert!((dot(&vector, left).abs() - 1.0).abs() < 1e-3, "vector {index}: {}", dot(&vector, left));
        }
    }

    /// Values 1, 0.9, 0.81, …, with known vectors on both sides.
    #[test]
    fn the_part_of_the_largest_values_is_the_best_one() {
        let (rows, cols, rank) = (50, 70, 6);
        for transposed in [false, true] {
            let mut left: Vec<Vec<f64>> = (0..40).map(|index| random(index, rows)).collect();
            let mut right: Vec<Vec<f64>> = (0..40).map(|index| random(index + 100, cols)).collect();
            orthonormalize(&mut left);
            orthonormalize(&mut right);
            let part = |from: usize, to: usize| {
                let scale = |index: usize| 0.9f64.powi(index as i32);
                let scaled: Vec<Vec<f64>> =
                    (from..to).map(|index| left[index].iter().map(|number| number * scale(index)).collect()).collect();
                let made = to_matrix(&scaled, &Device::flex())
                    .transpose()
                    .matmul(to_matrix(&right[from..to], &Device::flex()));
                if transposed { made.transpose() } else { made }
            };
            let (whole, best) = (part(0, 40), part(0, rank));
            for (effort, tolerance) in [(Effort::Iterations(16), 0.02), (Effort::Exact, 2e-3)] {
                let Truncated { left, values, right } = truncated(whole.clone(), rank, effort);
                for (index, value) in values.iter().enumerate() {
                    assert!((f64::from(*value) - 0.9f64.powi(index as i32)).abs() < tolerance, "{effort:?} {values:?}");
                }
                let diagonal = Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).unsqueeze::<2>();
                let off = (left * diagonal).matmul(right) - best.clone();
                assert!(f64::from(off.square().sum().sqrt().into_scalar::<f32>()) < 20.0 * tolerance, "{effort:?}");
            }
        }
        // Of all dimensions nothing is left out, whatever the effort.
        let matrix = to_matrix(&(0..5).map(|index| random(index, 9)).collect::<Vec<_>>(), &Device::flex());
        let Truncated { left, values, right } = truncated(matrix.clone(), 5, Effort::Iterations(0));
        let diagonal = Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).unsqueeze::<2>();
        crate::testing::assert_close((left * diagonal).matmul(right), matrix, 1e-6, "the whole");
    }

    #[test]
    fn a_matrix_of_zeros_has_vectors_too() {
        let found = leading(Tensor::<2>::zeros([6, 7], &Device::flex()), 2);
        let column = |index: usize| found.chunks_exact(2).map(|line| f64::from(line[index])).collect::<Vec<_>>();
        assert!((dot(&column(0), &column(0)) - 1.0).abs() < 1e-6 && dot(&column(0), &column(1)).abs() < 1e-6);
    }
}
