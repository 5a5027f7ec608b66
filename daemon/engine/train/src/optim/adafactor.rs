//! Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) as transformers defines it (`optimization.py`), with
//! `scale_parameter` and `relative_step` off: of a matrix's squared gradients only the means of rows and columns are
//! kept.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::{Optimizer, StateTensor, Update};

/// Added to every squared gradient: `eps[0]`.
const EPSILON: f64 = 1e-30;
/// The running means forget with `1 − step^DECAY`: `decay_rate`.
const DECAY: f64 = -0.8;
/// Updates with a larger root mean square are scaled down to it: `clip_threshold`.
const CLIP: f64 = 1.0;
/// Numbers whose sums are made at a time.
const PART: usize = 64 * 1024;

#[derive(Debug, Clone)]
pub struct Adafactor {
    /// Decoupled: each step takes `learning_rate · weight_decay` of a weight away.
    weight_decay: f64,
    squares: HashMap<String, Squares>,
}

/// Running means of one parameter's squared gradient.
#[derive(Debug, Clone, Default)]
struct Squares {
    /// Of each row; of each number where the parameter is a vector.
    rows: Vec<f32>,
    /// Of each column of a matrix.
    columns: Vec<f32>,
}

/// Bytes for a parameter: a mean for each row and each column.
pub(super) fn bytes([rows, cols]: [usize; 2]) -> u64 {
    let columns = if cols > 1 { cols } else { 0 };
    (rows + columns) as u64 * 4
}

impl Adafactor {
    pub fn new(weight_decay: f64) -> Self {
        Self { weight_decay, squares: HashMap::new() }
    }
}

impl Optimizer for Adafactor {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]) {
        let squares = self.squares.entry(update.name.to_owned()).or_default();
        let keep = 1.0 - (update.step as f64).powf(DECAY);
        // A vector is a matrix of one column, whose mean changes nothing.
        let width = if update.shape.len() > 1 { update.shape[1] } else { 1 };
        let (rows, columns) = means(gradient, width);
        squares.rows.resize(rows.len(), 0.0);
        blend(&mut squares.rows, &rows, keep);
        let row_factors: Vec<f32>;
        let column_factors: Vec<f32>;
        if width > 1 {
            squares.columns.resize(width, 0.0);
            blend(&mut squares.columns, &columns, keep);
            let mean = squares.rows.iter().map(|&row| f64::from(row)).sum::<f64>() / squares.rows.len() as f64;
            row_factors = squares.rows.iter().map(|&row| (mean / f64::from(row)).sqrt() as f32).collect();
            column_factors = squares.columns.iter().map(|column| 1.0 / column.sqrt()).collect();
        } else {
            row_factors = squares.rows.iter().map(|row| 1.0 / row.sqrt()).collect();
            column_factors = vec![1.0];
        }

        let lines = || gradient.par_chunks(width).zip(&row_factors).with_min_len(16 * 1024 / width + 1);
        let line_square = |(gradient, &row): (&[f32], &f32)| {
            let value = |(&gradient, &column): (&f32, &f32)| f64::from(gradient * row * column).powi(2);
            gradient.iter().zip(&column_factors).map(value).sum::<f64>()
        };
        // Collected first, so that the order of the sum does not depend on threads.
        let squares: Vec<f64> = lines().map(line_square).collect();
        let rms = (squares.iter().sum::<f64>() / gradient.len() as f64).sqrt();
        let rate = (update.learning_rate / (rms / CLIP).max(1.0)) as f32;
        let decay = update.decay(self.weight_decay);
        weights.par_chunks_mut(width).zip(lines()).for_each(|(weights, (gradient, &row))| {
            for ((weight, &gradient), &column) in weights.iter_mut().zip(gradient).zip(&column_factors) {
                *weight = *weight * decay - rate * (gradient * row * column);
            }
        });
    }

    fn state(&self) -> BTreeMap<String, StateTensor<'_>> {
        let mut state = BTreeMap::new();
        for (name, Squares { rows, columns }) in &self.squares {
            state.insert(format!("{name}.rows"), StateTensor::F32(Cow::Borrowed(rows.as_slice())));
            state.insert(format!("{name}.columns"), StateTensor::F32(Cow::Borrowed(columns.as_slice())));
        }
        state
    }

    fn restore(&mut self, state: BTreeMap<String, StateTensor<'static>>) {
        self.squares.clear();
        for (key, tensor) in state {
            let (Some((name, part)), StateTensor::F32(numbers)) = (key.rsplit_once('.'), tensor) else { continue };
            let squares = self.squares.entry(name.to_owned()).or_default();
            *(if part == "rows" { &mut squares.rows } else { &mut squares.columns }) = numbers.into_owned();
        }
    }
}

/// Means over the rows and over the columns of the squares.
fn means(gradient: &[f32], width: usize) -> (Vec<f64>, Vec<f64>) {
    let height = gradient.len() / width;
    let part = |lines: &[f32]| {
        let mut columns = vec![0.0; width];
        let row = |line: &[f32]| {
            let square = |(&value, column): (&f32, &mut f64)| {
                let square = f64::from(value).powi(2) + EPSILON;
                *column += square;
                square
            };
            line.iter().zip(&mut columns).map(square).sum::<f64>() / width as f64
        };
        let rows: Vec<f64> = lines.chunks(width).map(row).collect();
        (rows, columns)
    };
    let parts: Vec<(Vec<f64>, Vec<f64>)> = gradient.par_chunks((PART / width).max(1) * width).map(part).collect();
    let mut columns = vec![0.0; width];
    for (_, part) in &parts {
        columns.iter_mut().zip(part).for_each(|(sum, value)| *sum += value / height as f64);
    }
    (parts.into_iter().flat_map(|(rows, _)| rows).collect(), columns)
}

fn blend(running: &mut [f32], new: &[f64], keep: f64) {
    for (running, new) in running.iter_mut().zip(new) {
        *running = (f64::from(*running) * keep + new * (1.0 - keep)) as f32;
    }
}
