//! GaLore (Zhao et al. 2024, arXiv 2403.03507): AdamW in the space of a gradient's largest singular vectors, which are
//! looked up anew every so many steps. A hidden matrix of `rows × cols` is remembered as `rank × cols` or
//! `rows × rank`, whichever side is longer. Steps equal those of the authors' `galore_torch` with `proj_type="std"`, where
//! the moments outlive a new projection; ours fixes the signs of singular vectors, so that they still mean the same.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{Device, Tensor, TensorData};
use justtrain_kernels::singular::leading;
use rayon::prelude::*;

use super::{AdamW, Optimizer, StateTensor, Update, named, taken};

#[derive(Debug, Clone)]
pub struct Galore {
    rank: usize,
    /// Steps between two looks at the singular vectors.
    interval: u64,
    /// What the update is multiplied by when it comes back.
    scale: f64,
    weight_decay: f64,
    /// Singular vectors of each hidden matrix, `[shorter side, rank]`.
    projections: HashMap<String, Vec<f32>>,
    /// In the projected space, and of everything that is no hidden matrix.
    adamw: AdamW,
}

/// Bytes for a hidden matrix: the projection, and both moments of what is projected.
pub(super) fn bytes([rows, cols]: [usize; 2], rank: usize) -> u64 {
    match rank < rows.min(cols) {
        true => (rank * (rows.min(cols) + 2 * rows.max(cols))) as u64 * 4,
        false => super::adamw::bytes([rows, cols]),
    }
}

impl Galore {
    pub fn new(rank: usize, interval: u64, scale: f64, weight_decay: f64, adamw: AdamW) -> Self {
        Self { rank, interval, scale, weight_decay, projections: HashMap::new(), adamw }
    }
}

impl Optimizer for Galore {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]) {
        let (shape, rank) = match update.hidden_matrix() {
            // A projection onto all dimensions would save nothing.
            Some(shape) if self.rank < shape[0].min(shape[1]) => (shape, self.rank),
            _ => return self.adamw.update(update, weights, gradient),
        };
        let gradient = Tensor::<2>::from_data(TensorData::new(gradient.to_vec(), shape), &Device::flex());
        // The shorter side is the one that is projected.
        let tall = shape[0] >= shape[1];
        let turned = |matrix: Tensor<2>| if tall { matrix.transpose() } else { matrix };
        let gradient = turned(gradient);
        let [short, long] = gradient.dims();

        let due = (update.step - 1).is_multiple_of(self.interval);
        if due || !self.projections.contains_key(update.name) {
            self.projections.insert(update.name.to_owned(), leading(gradient.clone(), rank));
        }
        let vectors = TensorData::new(self.projections[update.name].clone(), [short, rank]);
        let vectors = Tensor::<2>::from_data(vectors, &Device::flex());
        let projected = numbers(vectors.clone().transpose().matmul(gradient));

        // From zeros, with a rate of 1, AdamW leaves the update itself.
        let mut change = vec![0.0; projected.len()];
        let inside = Update { shape: &[rank, long], decays: false, learning_rate: 1.0, ..*update };
        self.adamw.update(&inside, &mut change, &projected);
        let change = Tensor::<2>::from_data(TensorData::new(change, [rank, long]), &Device::flex());
        let change = numbers(turned(vectors.matmul(change)));

        let rate = (update.learning_rate * self.scale) as f32;
        let decay = update.decay(self.weight_decay);
        let numbers = weights.par_iter_mut().zip(&change).with_min_len(16 * 1024);
        numbers.for_each(|(weight, &change)| *weight = *weight * decay + rate * change);
    }

    fn state(&self) -> BTreeMap<String, StateTensor<'_>> {
        named(&self.projections, "projection").chain(self.adamw.state()).collect()
    }

    fn restore(&mut self, mut state: BTreeMap<String, StateTensor<'static>>) {
        self.projections = taken(&mut state, "projection");
        self.adamw.restore(state);
    }
}

fn numbers(matrix: Tensor<2>) -> Vec<f32> {
    matrix.into_data().try_into_vec().expect("it is f32")
}
