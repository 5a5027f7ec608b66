//! The batches of the whole run, from the rows themselves: the largest one decides over memory.

use std::path::PathBuf;

use justtrain_data::{Encoder, Labels, Sample, shares};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::Failure;

use crate::EventSink;
use crate::evaluate::BATCH_TOKENS;
use crate::objectives::{self, Baseline};
use crate::prepare::{encode_rows, read_rows};
use crate::recipe::Recipe;
use crate::run::{self, TaskSamples};

/// Rows that are tokenised; of more, an even selection stands for all.
const ROWS_READ: usize = 20_000;
/// One image takes as long as a thousand rows, and is of the same size as every other.
const IMAGES_READ: usize = 64;
/// Batches that are looked at one by one; a longer run goes on in the same way.
const BATCHES_SEEN: u64 = 200_000;

/// Tokenised rows, and how many rows they stand for.
pub(super) struct Rows {
    pub(super) train: Vec<Sample>,
    pub(super) validation: Vec<Sample>,
    pub(super) read: usize,
    pub(super) all: usize,
    /// Bytes of the data files.
    pub(super) file_bytes: u64,
    /// Bytes of the model's tensors in its files.
    pub(super) model_bytes: u64,
}

impl Rows {
    pub(super) fn read(
        recipe: &Recipe,
        model: &Checkpoint,
        encoder: &Encoder,
        events: &mut dyn EventSink,
    ) -> Result<Self, Failure> {
        let (train, validation) = read_rows(recipe)?;
        let all = train.len() + validation.len();
        let most = if encoder.images.is_some() { IMAGES_READ } else { ROWS_READ };
        let every = all.div_ceil(most).max(1);
        let labels = Labels::of(train.iter().chain(&validation));
        let mut samples = |rows: Vec<_>| {
            let selected: Vec<_> = rows.into_iter().step_by(every).collect();
            Ok::<_, Failure>((selected.len(), encode_rows(encoder, recipe, &labels, &selected, events)?))
        };
        let ((read, train), (read_too, validation)) = (samples(train)?, samples(validation)?);
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
        let file_bytes = recipe.dataset_files().into_iter().map(size).sum();
        Ok(Self { train, validation, read: read + read_too, all, file_bytes, model_bytes: model.bytes() })
    }

    /// One batch of so many tokens, all of which count for the loss.
    pub(super) fn of_one_batch(tokens: usize) -> Self {
        let sample = Sample { ids: vec![0; tokens], target: vec![true; tokens], row: 1, ..Sample::default() };
        Self { train: vec![sample], validation: Vec::new(), read: 1, all: 1, file_bytes: 0, model_bytes: 0 }
    }

    /// Rows for each row that was read.
    fn scale(&self) -> f64 {
        self.all as f64 / self.read.max(1) as f64
    }

    /// Bytes of all rows as samples.
    pub(super) fn sample_bytes(&self) -> u64 {
        let tokens: usize = self.train.iter().chain(&self.validation).map(Sample::tokens).sum();
        let samples = self.train.len() + self.validation.len();
        let classes = self.train.iter().chain(&self.validation).filter_map(|sample| sample.class.as_ref());
        let images: usize = classes.filter_map(|class| Some(class.image.as_ref()?.bytes().len())).sum();
        let bytes = tokens * (size_of::<u32>() + size_of::<bool>()) + samples * size_of::<Sample>() + images;
        (bytes as f64 * self.scale()) as u64
    }
}

/// Tokens of a batch, those of them that an encoder reads, and those that predict a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct BatchSize {
    pub(super) tokens: usize,
    pub(super) sources: usize,
    pub(super) targets: usize,
}

impl BatchSize {
    fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        samples.into_iter().fold(Self::default(), |sum, sample| Self {
            tokens: sum.tokens + sample.tokens(),
            sources: sum.sources + sample.source.len(),
            targets: sum.targets + sample.targets(),
        })
    }

    /// Tokens that no encoder reads.
    pub(super) fn targets_read(self) -> usize {
        self.tokens - self.sources
    }

    fn times(self, passes: usize) -> Self {
        let Self { tokens, sources, targets } = self;
        Self { tokens: tokens * passes, sources: sources * passes, targets: targets * passes }
    }

    fn max(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            sources: self.sources.max(other.sources),
            targets: self.targets.max(other.targets),
        }
    }
}

/// What a run goes through from its first step to its last.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Work {
    pub(super) steps: u64,
    pub(super) batches: u64,
    pub(super) tokens: u64,
    /// Of these, the ones that an encoder reads.
    pub(super) sources: u64,
    pub(super) targets: u64,
    /// Σ length² over all samples.
    pub(super) token_pairs: f64,
    pub(super) largest: BatchSize,
    /// Of the largest batch of a validation, or of samples that are scored without a gradient; nothing where there is none.
    pub(super) validation: BatchSize,
    /// Tokens that are scored for the reference before the first step.
    pub(super) reference_tokens: u64,
    /// Tokens that are scored beside the steps, for what KTO and LwF compare with.
    pub(super) baseline_tokens: u64,
}

impl Work {
    pub(super) fn plan(recipe: &Recipe, rows: &Rows) -> Self {
        let row_samples = recipe.stage.samples_of_row();
        let train = cut(&rows.train, row_samples, recipe.cutoff_len);
        if train.is_empty() {
            return Self::default();
        }
        let recipe_of_all = recipe.as_one_task();
        let samples = TaskSamples::one(train);
        let mut sampler = run::sampler(&recipe_of_all, &samples);
        let train = &samples.all;
        let accumulation = recipe.batches_per_step() as u64;
        let batches_per_epoch = sampler.batches_per_epoch() as f64 * rows.scale();
        let steps = recipe.total_steps((batches_per_epoch.ceil() as u64).div_ceil(accumulation));
        let batches = (steps as f64 * (batches_per_epoch / (batches_per_epoch / accumulation as f64).ceil())) as u64;
        let mut work = Self {
            steps,
            batches: batches.max(steps),
            validation: validation_batch(&cut(&rows.validation, row_samples, recipe.cutoff_len)),
            ..Self::default()
        };
        let seen = work.batches.min(BATCHES_SEEN);
        for _ in 0..seen {
            let (_, batch) = sampler.next_batch();
            let size = BatchSize::of(batch.iter().map(|&index| &train[index])).times(recipe.passes());
            work.largest = work.largest.max(size);
            work.tokens += size.tokens as u64;
            work.sources += size.sources as u64;
            work.targets += size.targets as u64;
            work.token_pairs +=
                recipe.passes() as f64 * batch.iter().map(|&index| (train[index].tokens() as f64).powi(2)).sum::<f64>();
        }
        let rest = work.batches as f64 / seen as f64;
        work.tokens = (work.tokens as f64 * rest) as u64;
        work.sources = (work.sources as f64 * rest) as u64;
        work.targets = (work.targets as f64 * rest) as u64;
        work.token_pairs *= rest;
        let objective = objectives::new(recipe);
        if let Some(judge) = objective.preference().map(|preference| &preference.judge) {
            // A prompt with another's answer is about as long as with its own.
            let (mismatched, compared) = match judge.baseline() {
                Baseline::None => (0, 0),
                Baseline::Mismatched => (1, 1),
                Baseline::Others => (0, 1),
            };
            let epochs = work.batches as f64 / batches_per_epoch;
            if judge.needs_reference() {
                work.reference_tokens = (work.tokens as f64 / epochs.max(1.0)) as u64 * (1 + mismatched);
                work.validation = work.validation.max(validation_batch(train));
            }
            work.baseline_tokens = work.tokens * compared;
        }
        if recipe.lwf().is_some() {
            // The model of before the stage reads every batch.
            work.baseline_tokens += work.tokens;
        }
        work
    }
}

/// Samples as a shorter `cutoff_len` would leave them. Those of a row go together.
fn cut(samples: &[Sample], row_samples: usize, cutoff_len: usize) -> Vec<Sample> {
    let cut = |sample: &Sample| {
        let [source, ids] = shares([sample.source.len(), sample.ids.len()], cutoff_len);
        Sample {
            ids: sample.ids[..ids].to_vec(),
            target: sample.target[..ids].to_vec(),
            source: sample.source[..source].to_vec(),
            class: sample.class.clone(),
            ..*sample
        }
    };
    let rows = samples.chunks(row_samples).map(|row| row.iter().map(cut).collect::<Vec<_>>());
    rows.filter(|row| row.iter().all(|sample| sample.targets() > 0)).flatten().collect()
}

/// A validation takes as many rows at a time as fit into its bound, at least one.
fn validation_batch(samples: &[Sample]) -> BatchSize {
    let all = BatchSize::of(samples);
    let longest = samples.iter().map(|sample| BatchSize::of([sample])).fold(BatchSize::default(), BatchSize::max);
    let [tokens, sources, targets] = [all.tokens, all.sources, all.targets].map(|count| count.min(BATCH_TOKENS));
    BatchSize { tokens, sources, targets }.max(longest)
}
