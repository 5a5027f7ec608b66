//! AdamW whose moments are 8 bits wide in blocks of 256 (Dettmers et al. 2021, arXiv 2110.02861), as bitsandbytes'
//! `AdamW8bit` computes it: 2 bytes a weight instead of 8. A parameter of fewer than 4096 numbers keeps moments in `f32`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use justtrain_kernels::blockwise::{Map, dynamic_map, quantize_block};
use rayon::prelude::*;

use super::{AdamW, Optimizer, StateTensor, Update};

/// Numbers that share a scale.
const BLOCK: usize = 256;
/// The least numbers that are kept in 8 bits: bitsandbytes' `min_8bit_size`.
const MIN_LEN: usize = 4096;

#[derive(Debug, Clone)]
pub struct AdamW8bit {
    /// The settings, and the moments of small parameters.
    small: AdamW,
    moments: HashMap<String, Moments>,
}

/// Running means of one parameter's gradient and of its square.
#[derive(Debug, Clone)]
struct Moments {
    mean: Blocks,
    square: Blocks,
}

/// Codes of a map, and the largest magnitude of each block.
#[derive(Debug, Clone, Default)]
struct Blocks {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Blocks {
    /// A scale of 0 makes every code a zero.
    fn zeros(len: usize) -> Self {
        Self { codes: vec![0; len], scales: vec![0.0; len.div_ceil(BLOCK)] }
    }
}

/// Bytes for a parameter: both moments, a code for each number and a scale for each block.
pub(super) fn bytes([rows, cols]: [usize; 2]) -> u64 {
    let len = rows * cols;
    let moment = if len < MIN_LEN { 4 * len } else { len + 4 * len.div_ceil(BLOCK) };
    2 * moment as u64
}

impl AdamW8bit {
    pub fn new(settings: AdamW) -> Self {
        Self { small: settings, moments: HashMap::new() }
    }
}

impl Optimizer for AdamW8bit {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]) {
        let len = weights.len();
        if len < MIN_LEN {
            return self.small.update(update, weights, gradient);
        }
        let zeros = || Moments { mean: Blocks::zeros(len), square: Blocks::zeros(len) };
        let Moments { mean, square } = self.moments.entry(update.name.to_owned()).or_insert_with(zeros);
        let rates = self.small.rates(update);
        let (signed, unsigned) = (dynamic_map(true), dynamic_map(false));
        let mean = mean.codes.par_chunks_mut(BLOCK).zip(&mut mean.scales);
        let square = square.codes.par_chunks_mut(BLOCK).zip(&mut square.scales);
        weights.par_chunks_mut(BLOCK).zip(gradient.par_chunks(BLOCK)).zip(mean.zip(square)).with_min_len(16).for_each(
            |((weights, gradient), (mean, square))| {
                let (mut means, mut squares) = ([0.0; BLOCK], [0.0; BLOCK]);
                decode(signed, &mean, &mut means);
                decode(unsigned, &square, &mut squares);
                let moments = means.iter_mut().zip(&mut squares);
                for ((weight, &gradient), (mean, square)) in weights.iter_mut().zip(gradient).zip(moments) {
                    rates.apply(weight, gradient, mean, square);
                }
                *mean.1 = quantize_block(signed, &means[..weights.len()], mean.0);
                *square.1 = quantize_block(unsigned, &squares[..weights.len()], square.0);
            },
        );
    }

    fn state(&self) -> BTreeMap<String, StateTensor<'_>> {
        let mut state = self.small.state();
        for (name, Moments { mean, square }) in &self.moments {
            for (part, blocks) in [("mean", mean), ("square", square)] {
                state.insert(format!("{name}.{part}.codes"), StateTensor::U8(Cow::Borrowed(&blocks.codes)));
                state.insert(format!("{name}.{part}.scales"), StateTensor::F32(Cow::Borrowed(&blocks.scales)));
            }
        }
        state
    }

    fn restore(&mut self, state: BTreeMap<String, StateTensor<'static>>) {
        self.moments.clear();
        let mut small = BTreeMap::new();
        for (key, tensor) in state {
            let parts: Vec<&str> = key.rsplitn(3, '.').collect();
            match (parts.as_slice(), tensor) {
                (["codes", part, name], StateTensor::U8(codes)) => self.part(name, part).codes = codes.into_owned(),
                (["scales", part, name], StateTensor::F32(scales)) => {
                    self.part(name, part).scales = scales.into_owned()
                }
                (_, tensor) => drop(small.insert(key, tensor)),
            }
        }
        self.small.restore(small);
    }
}

impl AdamW8bit {
    fn part(&mut self, name: &str, part: &str) -> &mut Blocks {
        let empty = || Moments { mean: Blocks::default(), square: Blocks::default() };
        let moments = self.moments.entry(name.to_owned()).or_insert_with(empty);
        if part == "mean" { &mut moments.mean } else { &mut moments.square }
    }
}

fn decode(map: &Map, (codes, scale): &(&mut [u8], &mut f32), numbers: &mut [f32]) {
    for (number, &code) in numbers.iter_mut().zip(codes.iter()) {
        *number = map[usize::from(code)] * **scale;
    }
}
