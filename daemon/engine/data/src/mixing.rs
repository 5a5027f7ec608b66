//! Batches of several tasks, each batch of one: which task is next, in a reproducible order.

use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Sampler, SamplerState};

/// How often each task is taken.
#[derive(Debug, Clone, PartialEq)]
pub enum Mixing {
    /// By shares that add up to whatever they do.
    Shares(Vec<f64>),
    /// One after the other.
    RoundRobin,
}

impl Mixing {
    /// Shares of `min(rows, cap)^(1/temperature)`: 1 is proportional to the rows, a large temperature nearly uniform
    /// (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2).
    pub fn tempered(rows: &[usize], temperature: f64, cap: Option<usize>) -> Self {
        let share = |&rows: &usize| (rows.min(cap.unwrap_or(usize::MAX)) as f64).powf(1.0 / temperature);
        Self::Shares(rows.iter().map(share).collect())
    }
}

/// Where the samplers of all tasks stand.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MixedState {
    #[serde(flatten)]
    first: SamplerState,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    others: Vec<SamplerState>,
    /// Batches that were taken, of all tasks.
    #[serde(default)]
    taken: u64,
}

/// The samplers of one task or several, whose samples lie one after the other.
#[derive(Debug, Clone)]
pub struct MixedSampler {
    tasks: Vec<Sampler>,
    /// Index of each task's first sample.
    starts: Vec<usize>,
    mixing: Mixing,
    /// Tasks that an epoch is counted by, the first ones.
    counted: usize,
    seed: u64,
    taken: u64,
}

impl MixedSampler {
    pub fn new(tasks: Vec<Sampler>, starts: Vec<usize>, mixing: Mixing, seed: u64) -> Self {
        assert!(!tasks.is_empty() && tasks.len() == starts.len());
        assert!(
            matches!(&mixing, Mixing::RoundRobin)
                || matches!(&mixing, Mixing::Shares(shares) if shares.len() == tasks.len())
        );
        Self { counted: tasks.len(), tasks, starts, mixing, seed, taken: 0 }
    }

    /// The same with one more task that takes `share` of the batches and makes an epoch no longer.
    pub fn beside(mut self, task: Sampler, start: usize, share: f64) -> Self {
        let shares = match self.mixing {
            Mixing::Shares(shares) => shares,
            Mixing::RoundRobin => vec![1.0; self.tasks.len()],
        };
        let all: f64 = shares.iter().sum();
        let mut shares: Vec<f64> = shares.iter().map(|of_task| of_task / all * (1.0 - share)).collect();
        shares.push(share);
        self.tasks.push(task);
        self.starts.push(start);
        Self { mixing: Mixing::Shares(shares), ..self }
    }

    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    pub fn state(&self) -> MixedState {
        let mut states = self.tasks.iter().map(Sampler::state);
        MixedState { first: states.next().expect("there is a task"), others: states.collect(), taken: self.taken }
    }

    /// Goes on from where another sampler of the same samples and settings stood.
    pub fn restore(&mut self, state: &MixedState) {
        let states = std::iter::once(&state.first).chain(&state.others);
        self.tasks.iter_mut().zip(states).for_each(|(task, &state)| task.restore(state));
        self.taken = state.taken;
    }

    /// Batches of an epoch: as many as it takes to see every sample once, if all tasks got theirs.
    pub fn batches_per_epoch(&self) -> usize {
        self.tasks[..self.counted].iter().map(Sampler::batches_per_epoch).sum()
    }

    /// The next task and its next batch.
    pub fn next_batch(&mut self) -> (usize, Vec<usize>) {
        let task = self.next_task();
        (task, self.batch_of(task))
    }

    /// The next batch of a task, whichever is next.
    pub fn batch_of(&mut self, task: usize) -> Vec<usize> {
        self.taken += 1;
        let start = self.starts[task];
        self.tasks[task].next_batch().into_iter().map(|index| start + index).collect()
    }

    /// A function of the seed and the number of batches before.
    fn next_task(&self) -> usize {
        match &self.mixing {
            _ if self.tasks.len() == 1 => 0,
            Mixing::RoundRobin => (self.taken % self.tasks.len() as u64) as usize,
            Mixing::Shares(shares) => {
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x7461_736B);
                rng.set_stream(self.taken);
                let mut place = rng.random::<f64>() * shares.iter().sum::<f64>();
                let reached = |share: &&f64| {
                    place -= **share;
                    place >= 0.0
                };
                shares.iter().take_while(reached).count().min(shares.len() - 1)
            }
        }
    }

    /// The batch taken last was the epoch's last.
    pub fn epoch_is_done(&self) -> bool {
        match self.tasks.as_slice() {
            [only] => only.epoch_is_done(),
            _ => self.taken.is_multiple_of(self.batches_per_epoch() as u64),
        }
    }

    /// Epochs done, as a fraction.
    pub fn progress(&self) -> f64 {
        match self.tasks.as_slice() {
            [only] => only.progress(),
            _ => self.taken as f64 / self.batches_per_epoch() as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sample;

    fn sampler(rows: usize) -> Sampler {
        let sample = |row| Sample { ids: vec![1, 2], target: vec![true; 2], row, ..Sample::default() };
        Sampler::new(&(0..rows as u64).map(sample).collect::<Vec<_>>(), 1, None, 3)
    }

    fn mixed(mixing: Mixing) -> MixedSampler {
        MixedSampler::new(vec![sampler(90), sampler(10)], vec![0, 90], mixing, 5)
    }

    fn counts(mixing: Mixing, batches: usize) -> [usize; 2] {
        let mut sampler = mixed(mixing);
        let mut counts = [0; 2];
        for _ in 0..batches {
            let (task, batch) = sampler.next_batch();
            assert!(batch.iter().all(|&sample| (sample >= 90) == (task == 1)));
            counts[task] += 1;
        }
        counts
    }

    #[test]
    fn tasks_are_taken_by_their_shares() {
        let rows = [90, 10];
        // Each count within four standard deviations of its expectation.
        let near = |mixing: Mixing, share: f64| {
            let n = 4000;
            let deviation = (n as f64 * share * (1.0 - share)).sqrt();
            let got = counts(mixing.clone(), n)[0] as f64;
            assert!((got - n as f64 * share).abs() < 4.0 * deviation, "{mixing:?}: {got}");
        };
        near(Mixing::tempered(&rows, 1.0, None), 0.9);
        near(Mixing::tempered(&rows, 2.0, None), 3.0 / 4.0);
        near(Mixing::tempered(&rows, 1e9, None), 0.5);
        near(Mixing::tempered(&rows, 1.0, Some(30)), 0.75);
        near(Mixing::Shares(vec![1.0, 3.0]), 0.25);
        assert_eq!(counts(Mixing::RoundRobin, 101), [51, 50]);
    }

    #[test]
    fn a_restored_sampler_goes_on_where_it_stood() {
        for mixing in [Mixing::tempered(&[90, 10], 2.0, None), Mixing::RoundRobin] {
            let mut sampler = mixed(mixing.clone());
            (0..37).for_each(|_| drop(sampler.next_batch()));
            let state: MixedState = serde_json::from_str(&serde_json::to_string(&sampler.state()).unwrap()).unwrap();
            let mut other = mixed(mixing);
            other.restore(&state);
            for _ in 0..200 {
                assert_eq!(sampler.next_batch(), other.next_batch());
            }
        }
    }

    #[test]
    fn what_is_beside_takes_its_share_and_makes_no_epoch_longer() {
        let alone = MixedSampler::new(vec![sampler(90)], vec![0], Mixing::Shares(vec![90.0]), 5);
        let mut both = alone.clone().beside(sampler(10), 90, 0.25);
        assert_eq!(both.batches_per_epoch(), alone.batches_per_epoch());
        let earlier = (0..4000).filter(|_| both.next_batch().0 == 1).count() as f64;
        assert!((earlier - 1000.0).abs() < 4.0 * (4000.0 * 0.25 * 0.75f64).sqrt(), "{earlier}");
    }

    #[test]
    fn one_task_is_its_sampler() {
        let (mut alone, mut plain) = (MixedSampler::new(vec![sampler(7)], vec![0], Mixing::RoundRobin, 5), sampler(7));
        for _ in 0..20 {
            assert_eq!(alone.next_batch(), (0, plain.next_batch()));
            assert_eq!((alone.epoch_is_done(), alone.progress()), (plain.epoch_is_done(), plain.progress()));
        }
        // What an earlier version has saved is read.
        alone.restore(&serde_json::from_str(r#"{"epoch":2,"batch":3}"#).unwrap());
        plain.restore(SamplerState { epoch: 2, batch: 3 });
        assert_eq!(alone.next_batch().1, plain.next_batch());
    }
}
