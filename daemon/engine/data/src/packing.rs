//! Padding-free batches in a reproducible order.

use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Class, Pixels, Sample};

/// Samples one after the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    pub ids: Vec<u32>,
    /// First token of each sample and, last, the number of all tokens.
    pub starts: Vec<usize>,
    /// Tokens whose hidden state predicts a target; ascending. Of a sample with a class its first one.
    pub target_rows: Vec<usize>,
    /// The target of the row at the same place: a token, or a class.
    pub target_ids: Vec<u32>,
    /// Of each token which of a pair's texts it is in, up to the last sample that says it.
    pub types: Vec<u32>,
    /// Of the samples that are images.
    pub images: Vec<Arc<Pixels>>,
    /// What an encoder reads of each sample, one after the other, and where each begins, as in `starts`; empty where there is none.
    pub source_ids: Vec<u32>,
    pub source_starts: Vec<usize>,
    /// 1-based data rows.
    pub rows: Vec<u64>,
}

impl Batch {
    /// No target crosses from one sample into the next.
    pub fn new<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let mut batch = Self { starts: vec![0], source_starts: vec![0], ..Self::default() };
        for sample in samples {
            let start = batch.ids.len();
            if let Some(Class { label, types, image }) = &sample.class {
                batch.images.extend(image.clone());
                batch.target_rows.push(start);
                batch.target_ids.push(*label);
                if !types.is_empty() {
                    batch.types.resize(start, 0);
                    batch.types.extend(types);
                }
            }
            for (at, (&id, _)) in sample.ids.iter().zip(&sample.target).enumerate().skip(1).filter(|(_, (_, t))| **t) {
                batch.target_rows.push(start + at - 1);
                batch.target_ids.push(id);
            }
            batch.ids.extend(&sample.ids);
            batch.starts.push(batch.ids.len());
            batch.source_ids.extend(&sample.source);
            batch.source_starts.push(batch.source_ids.len());
            batch.rows.push(sample.row);
        }
        batch
    }
}

/// Where a sampler stands; all that a checkpoint needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SamplerState {
    pub epoch: u64,
    /// Batches of this epoch that were taken.
    pub batch: usize,
}

/// Shuffles the samples anew for each epoch and groups them. The order depends on seed and epoch only.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Tokens of each row.
    lengths: Vec<usize>,
    /// Samples of each row.
    row_samples: usize,
    batch_size: usize,
    /// With packing, the most tokens of one pack.
    pack_len: Option<usize>,
    seed: u64,
    state: SamplerState,
    /// The batches of `state.epoch`, as indices of rows.
    plan: Vec<Vec<usize>>,
}

impl Sampler {
    /// Without `pack_len` a batch has `batch_size` samples; with it, `batch_size` packs, each filled with samples up to
    /// `pack_len` tokens.
    pub fn new(samples: &[Sample], batch_size: usize, pack_len: Option<usize>, seed: u64) -> Self {
        Self::of_rows(samples, 1, batch_size, pack_len, seed)
    }

    /// The same for rows of several samples each, which lie one after the other and stay together.
    pub fn of_rows(
        samples: &[Sample],
        row_samples: usize,
        batch_size: usize,
        pack_len: Option<usize>,
        seed: u64,
    ) -> Self {
        let tokens = |row: &[Sample]| row.iter().map(Sample::tokens).sum();
        let lengths = samples.chunks(row_samples).map(tokens).collect();
        let state = SamplerState::default();
        let mut sampler = Self { lengths, row_samples, batch_size, pack_len, seed, state, plan: Vec::new() };
        sampler.plan = sampler.plan_epoch(0);
        sampler
    }

    pub fn state(&self) -> SamplerState {
        self.state
    }

    /// Goes on from where another sampler of the same samples and settings stood.
    pub fn restore(&mut self, state: SamplerState) {
        self.plan = self.plan_epoch(state.epoch);
        self.state = state;
    }

    /// Batches of the first epoch; packs of later ones can differ by a few.
    pub fn batches_per_epoch(&self) -> usize {
        self.plan_epoch(0).len()
    }

    /// Indices of the next batch's samples; after an epoch's last batch the next epoch begins.
    pub fn next_batch(&mut self) -> Vec<usize> {
        // Not `==`: a state may come from a file.
        if self.state.batch >= self.plan.len() {
            self.restore(SamplerState { epoch: self.state.epoch + 1, batch: 0 });
        }
        self.state.batch += 1;
        let rows = self.plan[self.state.batch - 1].iter();
        rows.flat_map(|row| row * self.row_samples..(row + 1) * self.row_samples).collect()
    }

    /// The batch taken last was the epoch's last.
    pub fn epoch_is_done(&self) -> bool {
        self.state.batch == self.plan.len()
    }

    /// Epochs done, as a fraction.
    pub fn progress(&self) -> f64 {
        self.state.epoch as f64 + self.state.batch as f64 / self.plan.len() as f64
    }

    fn plan_epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch);
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        order.shuffle(&mut rng);
        let Some(pack_len) = self.pack_len else {
            return order.chunks(self.batch_size).map(<[usize]>::to_vec).collect();
        };
        let mut packs = best_fit_decreasing(&order, &self.lengths, pack_len);
        packs.shuffle(&mut rng);
        packs.chunks(self.batch_size).map(<[Vec<usize>]>::concat).collect()
    }
}

/// Longest first, each into the fullest pack that still has room (Johnson 1973); ties keep `order`.
fn best_fit_decreasing(order: &[usize], lengths: &[usize], pack_len: usize) -> Vec<Vec<usize>> {
    let mut longest_first = order.to_vec();
    longest_first.sort_by_key(|&sample| std::cmp::Reverse(lengths[sample]));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    // Free tokens → packs with so many, so that the fullest that fits is found without a scan.
    let mut by_room: std::collections::BTreeMap<usize, Vec<usize>> = std::collections::BTreeMap::new();
    for sample in longest_first {
        let len = lengths[sample];
        let fullest = by_room.range(len..).next().map(|(&room, _)| room);
        let (pack, room) = match fullest {
            Some(room) => {
                let same = by_room.get_mut(&room).expect("found above");
                let pack = same.pop().expect("no empty entry is kept");
                if same.is_empty() {
                    by_room.remove(&room);
                }
                (pack, room)
            }
            None => {
                packs.push(Vec::new());
                (packs.len() - 1, pack_len)
            }
        };
        packs[pack].push(sample);
        by_room.entry(room.saturating_sub(len)).or_default().push(pack);
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(lengths: &[usize]) -> Vec<Sample> {
        let sample = |(row, &len): (usize, &usize)| Sample {
            ids: (0..len as u32).collect(),
            target: (0..len).map(|at| at >= len / 2).collect(),
            row: row as u64 + 1,
            ..Sample::default()
        };
        lengths.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn a_batch_predicts_each_target_from_the_token_before_it() {
        let batch = Batch::new(&samples(&[4, 3]));
        assert_eq!(batch.ids, [0, 1, 2, 3, 0, 1, 2]);
        assert_eq!(batch.starts, [0, 4, 7]);
        assert_eq!(batch.target_rows, [1, 2, 4, 5]);
        assert_eq!(batch.target_ids, [2, 3, 1, 2]);
        // A first token that is marked has nothing before it.
        let first = Sample { ids: vec![9, 8], target: vec![true, false], row: 1, ..Sample::default() };
        assert!(Batch::new([&first, &first]).target_rows.is_empty());
    }

    #[test]
    fn an_epoch_takes_every_sample_once_in_an_order_of_its_own() {
        for pack_len in [None, Some(16)] {
            let samples = samples(&[3, 9, 4, 15, 2, 2, 7, 8, 1, 5]);
            let mut sampler = Sampler::new(&samples, 2, pack_len, 5);
            let epoch = |sampler: &mut Sampler| {
                let epoch = sampler.state().epoch;
                let mut batches = vec![sampler.next_batch()];
                while sampler.state().epoch == epoch && sampler.state().batch < sampler.plan.len() {
                    batches.push(sampler.next_batch());
                }
                batches
            };
            let first = epoch(&mut sampler);
            let mut all = first.concat();
            all.sort_unstable();
            assert_eq!(all, (0..10).collect::<Vec<_>>());
            sampler.next_batch();
            assert_eq!(sampler.state(), SamplerState { epoch: 1, batch: 1 });
            assert_ne!(sampler.plan, first);
            assert_eq!(Sampler::new(&samples, 2, pack_len, 5).plan, first);
            assert_ne!(Sampler::new(&samples, 2, pack_len, 6).plan, first);
        }
    }

    #[test]
    fn the_samples_of_a_row_stay_together() {
        let samples = samples(&[3, 9, 4, 4, 2, 2, 7, 8]);
        for pack_len in [None, Some(20)] {
            let mut sampler = Sampler::of_rows(&samples, 2, 2, pack_len, 5);
            let mut seen: Vec<usize> = (0..sampler.batches_per_epoch()).flat_map(|_| sampler.next_batch()).collect();
            assert!(seen.chunks(2).all(|row| row[0] % 2 == 0 && row[1] == row[0] + 1), "{seen:?}");
            seen.sort_unstable();
            assert_eq!(seen, (0..8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_restored_sampler_goes_on_as_the_first_would() {
        let samples = samples(&[3, 9, 4, 15, 2, 2, 7]);
        let mut whole = Sampler::new(&samples, 2, Some(20), 1);
        (0..7).for_each(|_| drop(whole.next_batch()));
        let mut restored = Sampler::new(&samples, 2, Some(20), 1);
        restored.restore(whole.state());
        for _ in 0..20 {
            assert_eq!(restored.next_batch(), whole.next_batch());
        }
    }

    #[test]
    fn a_state_past_the_end_goes_on_with_the_next_epoch() {
        let mut sampler = Sampler::new(&samples(&[3, 9, 4]), 2, None, 1);
        sampler.restore(SamplerState { epoch: 0, batch: 9 });
        sampler.next_batch();
        assert_eq!(sampler.state(), SamplerState { epoch: 1, batch: 1 });
    }

    #[test]
    fn packs_are_full_and_never_too_long() {
        let lengths = [9, 1, 5, 5, 8, 2, 6, 4, 10, 3, 7];
        let order: Vec<usize> = (0..lengths.len()).collect();
        let packs = best_fit_decreasing(&order, &lengths, 10);
        let sums: Vec<usize> = packs.iter().map(|pack| pack.iter().map(|&i| lengths[i]).sum()).collect();
        assert_eq!(sums, [10; 6]);
    }
}
