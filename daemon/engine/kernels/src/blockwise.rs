//! Numbers in 8 bits: codes of a fixed map, scaled by the largest magnitude of their block (Dettmers et al. 2021, arXiv
//! 2110.02861), bit for bit as bitsandbytes defines it (`backends/default/ops.py: quantize_blockwise`).

use std::sync::LazyLock;

use crate::simd::simd_fn;

/// 256 ascending numbers in −1…1.
pub type Map = [f32; 256];

/// The dynamic map: a sign (where `signed`), a decimal exponent in unary, and what bits are left of linear fraction
/// (Dettmers 2015, arXiv 1511.04561; `functional.py: create_dynamic_map`).
pub fn dynamic_map(signed: bool) -> &'static Map {
    static SIGNED: LazyLock<Map> = LazyLock::new(|| make_map(true));
    static UNSIGNED: LazyLock<Map> = LazyLock::new(|| make_map(false));
    if signed { &SIGNED } else { &UNSIGNED }
}

fn make_map(signed: bool) -> Map {
    const EXPONENTS: i32 = 7;
    let mut values = vec![0.0, 1.0];
    for exponent in 0..EXPONENTS {
        let intervals = 1usize << (exponent + i32::from(!signed));
        let scale = 10f64.powi(exponent - (EXPONENTS - 1)) as f32;
        let bounds = linspace(intervals + 1);
        for pair in bounds.windows(2) {
            let value = scale * ((pair[0] + pair[1]) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("127 magnitudes of either sign, or 254 of one, and two more")
}

/// `count` evenly spaced numbers from 0.1 to 1 as `torch.linspace` makes them: counted from the nearer end, each in one
/// fused step, which is what it is compiled to for AVX2 and later.
fn linspace(count: usize) -> Vec<f32> {
    let step = (1.0f32 - 0.1) / (count - 1) as f32;
    let value = |index: usize| match index < count / 2 {
        true => step.mul_add(index as f32, 0.1),
        false => (-step).mul_add((count - 1 - index) as f32, 1.0),
    };
    (0..count).map(value).collect()
}

/// A vector of numbers as codes of a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Blockwise {
    codes: Vec<u8>,
    /// The largest magnitude of each block.
    scales: Vec<f32>,
    block: usize,
    map: &'static Map,
}

impl Blockwise {
    pub fn zeros(len: usize, map: &'static Map, block: usize) -> Self {
        let zero = map.partition_point(|&value| value < 0.0) as u8;
        Self { codes: vec![zero; len], scales: vec![0.0; len.div_ceil(block)], block, map }
    }

    pub fn quantize(values: &[f32], map: &'static Map, block: usize) -> Self {
        let mut quantized = Self::zeros(values.len(), map, block);
        let blocks = quantized.codes.chunks_mut(block).zip(&mut quantized.scales).zip(values.chunks(block));
        blocks.for_each(|((codes, scale), values)| {
            *scale = if values.len() == block {
                quantize_block(map, values, codes)
            } else {
                quantize_rest(map, values, codes)
            };
        });
        quantized
    }

    #[inline]
    pub fn get(&self, index: usize) -> f32 {
        self.map[usize::from(self.codes[index])] * self.scales[index / self.block]
    }

    #[cfg(test)]
    pub(crate) fn codes(&self) -> &[u8] {
        &self.codes
    }

    #[cfg(test)]
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Bytes in memory, without the map, which all share.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() * 4
    }
}

/// A block of zeros is divided by this.
const SMALLEST: f32 = 1e-38;

/// Writes the nearest codes of a whole block and returns its scale; half-way is the lower code.
pub fn quantize_block(map: &Map, values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = largest_magnitude(values);
    nearest_codes(map, values, 1.0 / scale.max(SMALLEST), codes);
    scale
}

simd_fn! {
    fn nearest_codes(map: &Map, values: &[f32], inverse: f32, codes: &mut [u8]) {
        let _ = FMA;
        for (code, value) in codes.iter_mut().zip(values) {
            *code = nearest(map, (value * inverse).clamp(-1.0, 1.0));
        }
    }
}

/// As [`quantize_block`] for a last block that is shorter: there bitsandbytes divides, and no scale is 0.
fn quantize_rest(map: &Map, values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = largest_magnitude(values).max(SMALLEST);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = nearest(map, (value / scale).clamp(-1.0, 1.0));
    }
    scale
}

simd_fn! {
    fn largest_magnitude(values: &[f32]) -> f32 {
        let _ = FMA;
        let mut lanes = [0.0f32; 16];
        let (chunks, rest) = values.as_chunks::<16>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = if value.abs() > *lane { value.abs() } else { *lane };
            }
        }
        rest.iter().chain(&lanes).fold(0.0, |largest, value| value.abs().max(largest))
    }
}

/// A binary search without branches, so that loops over it vectorise.
#[inline(always)]
fn nearest(map: &Map, value: f32) -> u8 {
    // Codes below the value: at most 255 of them, as the last one is 1.
    let mut below = 0;
    for half in [128, 64, 32, 16, 8, 4, 2, 1] {
        below += if map[(below + half - 1) & 255] < value { half } else { 0 };
    }
    let above = below.clamp(1, 255);
    let middle = (map[above - 1] + map[above]) / 2.0;
    (if value > middle { above } else { above - 1 }) as u8
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use justtrain_weights::safetensors::SafetensorsFile;

    use super::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Both maps and what is made with them against bitsandbytes (`scripts/golden/quantization.py`).
    #[test]
    fn maps_codes_scales_and_values_are_bitsandbytes_to_the_last_bit() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quantization.safetensors");
        let goldens = SafetensorsFile::open(&path).unwrap();
        for (signed, name) in [(true, "signed"), (false, "unsigned")] {
            let map = dynamic_map(signed);
            assert_eq!(bits(map), bits(&goldens.read_f32(&format!("map.{name}")).unwrap()), "{name}");
            for len in [1, 255, 256, 700] {
                let name = format!("map.{name}.{len}");
                let read = |part: &str| goldens.read_f32(&format!("{name}.{part}")).unwrap();
                let made = Blockwise::quantize(&read("vector"), map, 256);
                assert_eq!(made.codes, goldens.bytes(&format!("{name}.codes")).unwrap(), "{name}");
                assert_eq!(bits(&made.scales), bits(&read("scales")), "{name}");
                let values: Vec<f32> = (0..len).map(|index| made.get(index)).collect();
                assert_eq!(bits(&values), bits(&read("values")), "{name}");
            }
        }
    }
}
