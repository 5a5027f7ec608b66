//! Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796): `λ/2·Σ F·(w − w*)²` is added to the loss, with the
//! weights `w*` that the stage before has left and the diagonal `F` of the Fisher information there. `F` is the mean over examples of
//! the squared gradient of an example's own log-likelihood, with the answers of the data (the empirical Fisher). Of several stages
//! `F ← γ·F + F′` (online EWC, Schwarz et al. 2018, arXiv 1805.06370).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use justtrain_data::{Batch, Sample};
use justtrain_kernels::Targets;
use justtrain_model::parameters::{Parameter, Parameters, Trained};
use justtrain_model::{Decoder, Mode};
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write};
use justtrain_worker_api::Problem;
use rayon::prelude::*;

use crate::backward::Backward;
use crate::gradients::square_sum;
use crate::loss_scale::LossScale;
use crate::objectives::Sft;
use crate::prepare::input_of;
use crate::regularizers::Regularizers;
use crate::step::MicroBatch;

/// The file that a stage leaves beside its result.
pub(crate) const FISHER: &str = "fisher.safetensors";

/// What a parameter mattered, and where it was.
#[derive(Debug, Clone, PartialEq)]
struct Anchor {
    fisher: Vec<f32>,
    weights: Vec<f32>,
}

#[derive(Debug, Clone)]
pub struct Ewc {
    lambda: f32,
    anchors: Arc<BTreeMap<String, Anchor>>,
}

impl Ewc {
    /// Of what the stage before has left.
    pub(crate) fn open(path: &Path, lambda: f32) -> Result<Self, Problem> {
        Ok(Self { lambda, anchors: Arc::new(read(path)?) })
    }

    /// Adds the term's gradient, `λ·F·(w − w*)`.
    pub(crate) fn pull(&self, parameter: &Parameter<'_>, gradient: &mut [f32]) {
        let Some(Anchor { fisher, weights: start }) = self.anchors.get(&parameter.name) else { return };
        let weights = parameter.values();
        let numbers = gradient.par_iter_mut().zip(weights.par_iter().zip(start).zip(fisher)).with_min_len(16 * 1024);
        numbers.for_each(|(gradient, ((weight, start), fisher))| *gradient += self.lambda * fisher * (weight - start));
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Anchor>, Problem> {
    let file = SafetensorsFile::open(path)?;
    let names: Vec<String> = file.names().filter_map(|name| Some(name.strip_prefix("fisher.")?.to_owned())).collect();
    let anchor = |name: String| {
        let [fisher, weights] = ["fisher", "weights"].map(|kind| file.read_f32(&format!("{kind}.{name}")));
        Ok((name, Anchor { fisher: fisher?, weights: weights? }))
    };
    names.into_iter().map(anchor).collect()
}

/// How gradients are made of a stage's model at its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) trained: Trained<'a>,
    pub(crate) checkpointing: bool,
    /// Where products are in float16.
    pub(crate) loss_scale: Option<LossScale>,
}

/// Writes what the next stage must know of this one: with `before`, that of the stages before as well, each times `gamma` less.
pub(crate) fn remember(
    decoder: &mut Decoder,
    pass: Pass<'_>,
    samples: &[&Sample],
    before: Option<(&Path, f32)>,
    path: &Path,
) -> Result<(), Problem> {
    let mut fisher = fisher(decoder, pass, samples);
    if let Some((before, gamma)) = before {
        for (name, anchor) in read(before)? {
            let sum = fisher.entry(name).or_insert_with(|| vec![0.0; anchor.fisher.len()]);
            sum.iter_mut().zip(&anchor.fisher).for_each(|(sum, before)| *sum += gamma * before);
        }
    }
    let mut numbers: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for parameter in decoder.trained_mut(pass.trained) {
        if let Some(fisher) = fisher.remove(&parameter.name) {
            numbers.insert(format!("fisher.{}", parameter.name), fisher);
            numbers.insert(format!("weights.{}", parameter.name), parameter.values());
        }
    }
    let entry = |(name, numbers): (&String, &Vec<f32>)| Entry {
        name: name.clone(),
        shape: vec![numbers.len()],
        dtype: Dtype::F32,
    };
    let entries: Vec<Entry> = numbers.iter().map(entry).collect();
    write(path, &entries, &BTreeMap::new(), |entry| Ok(numbers[&entry.name].clone())).map(|_| ())
}

/// The mean over the samples of each one's squared gradient, by parameter.
fn fisher(decoder: &mut Decoder, pass: Pass<'_>, samples: &[&Sample]) -> BTreeMap<String, Vec<f32>> {
    let Pass { trained, checkpointing, mut loss_scale } = pass;
    let mut fisher: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let (objective, regularizers) = (Sft::default(), Regularizers::default());
    for &sample in samples {
        let mut batch = Batch::new([sample]);
        let batch = MicroBatch {
            task: 0,
            input: input_of(&mut batch, decoder),
            targets: Arc::new(Targets { rows: batch.target_rows, tokens: batch.target_ids, weights: None }),
            answers: Vec::new(),
            dropout_seed: None,
        };
        let mut backward = Backward {
            objective: &objective,
            trained,
            checkpointing,
            mode: Mode { adapter: true, dropout_seed: None },
            regularizers: &regularizers,
            divisor: 1.0,
            loss_scale: 1.0,
        };
        let share = 1.0 / samples.len() as f32;
        if let Some(scale) = &mut loss_scale {
            backward.loss_scale = scale.factor;
            while overflows(&backward, decoder, &batch) && scale.overflowed() {
                backward.loss_scale = scale.factor;
            }
        }
        backward.run(decoder, &batch, &mut |parameter, gradient| {
            let sum = fisher.entry(parameter.name.clone()).or_insert_with(|| vec![0.0; gradient.len()]);
            let numbers = sum.par_iter_mut().zip(&gradient).with_min_len(16 * 1024);
            numbers.for_each(|(sum, gradient)| *sum += share * gradient * gradient);
        });
    }
    fisher
}

/// Whether a gradient is too large for float16.
fn overflows(backward: &Backward<'_>, decoder: &mut Decoder, batch: &MicroBatch) -> bool {
    let mut finite = true;
    backward.run(decoder, batch, &mut |_, gradient| finite &= square_sum(&gradient).is_finite());
    !finite
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::decoder;

    const PASS: Pass<'_> = Pass { trained: Trained::Weights, checkpointing: false, loss_scale: None };

    fn samples() -> [Sample; 2] {
        [(3, 12), (20, 7)].map(|(first, len)| Sample {
            ids: (first..first + len).collect(),
            target: (0..len).map(|at| at > 2).collect(),
            row: 1,
            ..Sample::default()
        })
    }

    /// Per example, not of a batch: the square of a sum would let gradients of opposite signs cancel.
    #[test]
    fn the_fisher_information_is_the_mean_of_each_samples_squared_gradient() {
        let (mut decoder, samples) = (decoder(), samples());
        let of = |decoder: &mut Decoder, samples: &[&Sample]| fisher(decoder, PASS, samples);
        let [first, second] = [&samples[0], &samples[1]];
        let both = of(&mut decoder, &[first, second]);
        let (first, second) = (of(&mut decoder, &[first]), of(&mut decoder, &[second]));
        assert!(both.len() > 10);
        for (name, both) in both {
            for ((both, first), second) in both.iter().zip(&first[&name]).zip(&second[&name]) {
                let want = (first + second) / 2.0;
                assert!(*first >= 0.0 && (both - want).abs() <= 1e-6 * want.max(1e-6), "{name}: {both} {want}");
            }
        }
    }

    #[test]
    fn what_is_remembered_is_added_up_and_pulls_back() {
        let (mut decoder, samples) = (decoder(), samples());
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        remember(&mut decoder, PASS, &[&samples[0]], None, &one).unwrap();
        remember(&mut decoder, PASS, &[&samples[0]], Some((&one, 0.5)), &two).unwrap();
        let (one, two) = (read(&one).unwrap(), read(&two).unwrap());
        let (name, anchor) = one.iter().find(|(name, _)| name.contains("up_proj")).unwrap();
        for (two, one) in two[name].fisher.iter().zip(&anchor.fisher) {
            assert!((two - 1.5 * one).abs() <= 1e-6 * one.abs());
        }
        let ewc = Ewc { lambda: 3.0, anchors: Arc::new(one.clone()) };
        for mut parameter in decoder.trained_mut(Trained::Weights) {
            if parameter.name != *name {
                continue;
            }
            let mut gradient = vec![1.0; anchor.weights.len()];
            ewc.pull(&parameter, &mut gradient);
            assert!(gradient.iter().all(|value| *value == 1.0), "at the anchor nothing pulls");
            parameter.update(0, |weights| weights.iter_mut().for_each(|weight| *weight += 0.5));
            ewc.pull(&parameter, &mut gradient);
            for (gradient, fisher) in gradient.iter().zip(&anchor.fisher) {
                assert!((gradient - (1.0 + 3.0 * fisher * 0.5)).abs() <= 1e-4 * (1.0 + fisher), "{gradient} {fisher}");
            }
        }
    }
}
