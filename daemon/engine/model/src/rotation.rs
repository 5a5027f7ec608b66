//! Frequencies of rotary positions and the ways of scaling them to longer sequences, as transformers computes them
//! (`modeling_rope_utils.py`).

use std::borrow::Cow;
use std::f64::consts::PI;
use std::sync::Arc;

use justtrain_kernels::RotaryTable;

use crate::Input;

/// One kind of rotation, for a head's width.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    frequencies: Frequencies,
    /// What cosines and sines are multiplied by.
    amplitude: f32,
}

/// Radians a position, one for each pair of a head.
#[derive(Debug, Clone, PartialEq)]
enum Frequencies {
    Fixed(Vec<f32>),
    /// Of a sequence that is longer than `original`, the base grows with its length (NTK-aware scaling).
    Dynamic {
        head_dim: usize,
        theta: f64,
        factor: f64,
        original: usize,
    },
    /// One set up to `original` tokens, another beyond (LongRoPE, arXiv 2402.13753).
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        original: usize,
    },
}

/// YaRN's constants (arXiv 2309.00071).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub original: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Whether the bounds of the ramp are whole numbers.
    pub truncate: bool,
    pub amplitude: f64,
}

/// Llama 3.1's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3 {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original: f64,
}

impl Rotation {
    /// `theta^(−2i / head_dim)`.
    pub fn default(head_dim: usize, theta: f64) -> Self {
        Self::fixed(plain(head_dim, theta).into_iter())
    }

    /// Positions are divided by `factor`.
    pub fn linear(head_dim: usize, theta: f64, factor: f64) -> Self {
        Self::fixed(plain(head_dim, theta).into_iter().map(|frequency| frequency / factor))
    }

    pub fn dynamic(head_dim: usize, theta: f64, factor: f64, original: usize) -> Self {
        Self { frequencies: Frequencies::Dynamic { head_dim, theta, factor, original }, amplitude: 1.0 }
    }

    /// High frequencies stay, low ones are divided, those between are a mixture of both.
    pub fn llama3(head_dim: usize, theta: f64, constants: Llama3) -> Self {
        let Llama3 { factor, low_freq_factor, high_freq_factor, original } = constants;
        let scale = |frequency: f64| {
            let turns = original * frequency / (2.0 * PI);
            if turns < low_freq_factor {
                return frequency / factor;
            }
            if turns > high_freq_factor {
                return frequency;
            }
            let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - kept) * frequency / factor + kept * frequency
        };
        Self::fixed(plain(head_dim, theta).into_iter().map(scale))
    }

    pub fn yarn(head_dim: usize, theta: f64, constants: Yarn) -> Self {
        let Yarn { factor, original, beta_fast, beta_slow, truncate, amplitude } = constants;
        let dim = head_dim as f64;
        // The pair that turns so many times over the original length.
        let pair = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let scale = |(index, frequency): (usize, f64)| {
            let divided = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * divided + frequency * (1.0 - divided)
        };
        let frequencies = plain(head_dim, theta).into_iter().enumerate().map(scale);
        Self { amplitude: amplitude as f32, ..Self::fixed(frequencies) }
    }

    /// `short` and `long` divide the frequencies, one number for each.
    pub fn long(theta: f64, [short, long]: [&[f64]; 2], original: usize, amplitude: f64) -> Self {
        let divided = |divisors: &[f64]| {
            let frequencies = plain(2 * divisors.len(), theta).into_iter();
            frequencies.zip(divisors).map(|(frequency, divisor)| (frequency / divisor) as f32).collect()
        };
        let frequencies = Frequencies::Long { short: divided(short), long: divided(long), original };
        Self { frequencies, amplitude: amplitude as f32 }
    }

    fn fixed(frequencies: impl Iterator<Item = f64>) -> Self {
        let frequencies = Frequencies::Fixed(frequencies.map(|frequency| frequency as f32).collect());
        Self { frequencies, amplitude: 1.0 }
    }

    /// Those of a sequence of so many tokens.
    fn frequencies(&self, length: usize) -> Cow<'_, [f32]> {
        match &self.frequencies {
            Frequencies::Fixed(frequencies) => Cow::Borrowed(frequencies),
            Frequencies::Long { short, long, original } => Cow::Borrowed(if length > *original { long } else { short }),
            &Frequencies::Dynamic { head_dim, theta, factor, original } => {
                let stretch = factor * length.max(original) as f64 / original as f64 - (factor - 1.0);
                let theta = theta * stretch.powf(head_dim as f64 / (head_dim as f64 - 2.0));
                plain(head_dim, theta).into_iter().map(|frequency| frequency as f32).collect()
            }
        }
    }

    /// Cosines and sines of every token.
    pub(crate) fn table(&self, input: &Input) -> Arc<RotaryTable> {
        let table = match &self.frequencies {
            Frequencies::Fixed(frequencies) => RotaryTable::new(&input.positions, frequencies),
            _ => RotaryTable::concat(
                input
                    .segments
                    .sequences()
                    .map(|(queries, length)| RotaryTable::new(&input.positions[queries], &self.frequencies(length))),
            ),
        };
        Arc::new(table.scaled(self.amplitude))
    }

    /// The length beyond which all tokens of a sequence are rotated otherwise, those that a cache holds as well.
    pub(crate) fn turning_point(&self) -> Option<usize> {
        match self.frequencies {
            Frequencies::Long { original, .. } => Some(original),
            _ => None,
        }
    }
}

fn plain(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|i| 1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)).collect()
}
