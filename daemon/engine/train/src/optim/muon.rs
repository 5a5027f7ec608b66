//! Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"): the momentum of a hidden matrix
//! is made nearly orthogonal, so that all its directions move alike. As `torch.optim.Muon` computes it with
//! `adjust_lr_fn="match_rms_adamw"` (Liu et al. 2025, arXiv 2502.16982), in `f32`: the updates are as large as AdamW's,
//! so that one learning rate serves both. Tables, norms and biases are AdamW's.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::{AdamW, Optimizer, StateTensor, Update, named, taken};

/// Newton-Schulz steps, and the coefficients of their polynomial.
const STEPS: usize = 5;
const COEFFICIENTS: [f32; 3] = [3.4445, -4.775, 2.0315];
/// The least norm that a momentum is divided by.
const EPSILON: f32 = 1e-7;

#[derive(Debug, Clone)]
pub struct Muon {
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
    means: HashMap<String, Vec<f32>>,
    rest: AdamW,
}

/// Bytes for a hidden matrix: the momentum in `f32`.
pub(super) fn bytes([rows, cols]: [usize; 2]) -> u64 {
    (rows * cols) as u64 * 4
}

impl Muon {
    /// `rest` takes what is no hidden matrix.
    pub fn new(momentum: f64, nesterov: bool, weight_decay: f64, rest: AdamW) -> Self {
        Self { momentum, nesterov, weight_decay, means: HashMap::new(), rest }
    }

    /// The momentum with this step's gradient.
    fn direction(&mut self, name: &str, gradient: &[f32]) -> Vec<f32> {
        let mean = self.means.entry(name.to_owned()).or_default();
        mean.resize(gradient.len(), 0.0);
        let (keep, new, nesterov) = (self.momentum as f32, (1.0 - self.momentum) as f32, self.nesterov);
        let numbers = mean.par_iter_mut().zip(gradient).with_min_len(16 * 1024);
        let direction = numbers.map(|(mean, &gradient)| {
            *mean += new * (gradient - *mean);
            if nesterov { gradient + keep * (*mean - gradient) } else { *mean }
        });
        direction.collect()
    }
}

impl Optimizer for Muon {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]) {
        let Some([rows, cols]) = update.hidden_matrix() else { return self.rest.update(update, weights, gradient) };
        let direction = orthogonalized(self.direction(update.name, gradient), [rows, cols]);
        let rate = (update.learning_rate * 0.2 * (rows.max(cols) as f64).sqrt()) as f32;
        let decay = update.decay(self.weight_decay);
        let numbers = weights.par_iter_mut().zip(&direction).with_min_len(16 * 1024);
        numbers.for_each(|(weight, &direction)| *weight = *weight * decay - rate * direction);
    }

    fn state(&self) -> BTreeMap<String, StateTensor<'_>> {
        named(&self.means, "momentum").chain(self.rest.state()).collect()
    }

    fn restore(&mut self, mut state: BTreeMap<String, StateTensor<'static>>) {
        self.means = taken(&mut state, "momentum");
        self.rest.restore(state);
    }
}

/// The matrix with its singular values brought near 1, by a polynomial of the matrix itself.
fn orthogonalized(matrix: Vec<f32>, shape: [usize; 2]) -> Vec<f32> {
    let square = matrix.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
    let matrix = Tensor::<2>::from_data(TensorData::new(matrix, shape), &Device::flex());
    // The product of the matrix with itself is taken on the shorter side.
    let tall = shape[0] > shape[1];
    let turned = |matrix: Tensor<2>| if tall { matrix.transpose() } else { matrix };
    let mut x = turned(matrix) / (square.sqrt() as f32).max(EPSILON);
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..STEPS {
        let gram = x.clone().matmul(x.clone().transpose());
        let polynomial = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + polynomial.matmul(x);
    }
    turned(x).into_data().try_into_vec().expect("it is f32")
}
