//! A buffer of earlier rows: each has the same chance to be in it, however many there were (Vitter 1985, algorithm R).

use justtrain_data::Sample;
use justtrain_kernels::random;

/// At most `size` samples, in the order of the places that they took.
pub(crate) fn reservoir<'a>(samples: impl IntoIterator<Item = &'a Sample>, size: usize, seed: u64) -> Vec<Sample> {
    let mut kept: Vec<&Sample> = Vec::with_capacity(size);
    for (index, sample) in samples.into_iter().enumerate() {
        if kept.len() < size {
            kept.push(sample);
            continue;
        }
        let place = (random::at(seed, index) % (index as u64 + 1)) as usize;
        if let Some(kept) = kept.get_mut(place) {
            *kept = sample;
        }
    }
    kept.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_the_same_chance() {
        let sample = |row| Sample { ids: vec![1], target: vec![true], row, ..Sample::default() };
        let samples: Vec<Sample> = (0..40).map(sample).collect();
        let mut counts = [0u32; 40];
        const TIMES: u64 = 4000;
        for seed in 0..TIMES {
            let kept = reservoir(&samples, 10, seed * 7919);
            assert_eq!(kept.len(), 10);
            kept.iter().for_each(|sample| counts[sample.row as usize] += 1);
        }
        // A quarter each; five standard deviations.
        let deviation = (TIMES as f64 * 0.25 * 0.75).sqrt();
        for (row, count) in counts.iter().enumerate() {
            assert!((f64::from(*count) - TIMES as f64 / 4.0).abs() < 5.0 * deviation, "row {row}: {count}");
        }
        assert_eq!(reservoir(&samples[..3], 10, 1).len(), 3);
    }
}
