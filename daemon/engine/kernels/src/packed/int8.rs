//! Signed bytes scaled by each row's largest magnitude: the vector-wise form of LLM.int8() (Dettmers et al. 2022, arXiv
//! 2208.07339), bit for bit as bitsandbytes defines it (`backends/default/ops.py: int8_vectorwise_quant`).

use std::sync::Arc;

use rayon::prelude::*;

use super::{Builder, Form};
use crate::simd::simd_fn;

#[derive(Debug)]
pub(super) struct Int8 {
    codes: Vec<i8>,
    /// The largest magnitude of each row, which the code 127 stands for.
    scales: Vec<f32>,
    cols: usize,
}

impl Int8 {
    pub(super) fn with_capacity([rows, cols]: [usize; 2]) -> Self {
        Self { codes: Vec::with_capacity(rows * cols), scales: Vec::with_capacity(rows), cols }
    }
}

impl Builder for Int8 {
    fn push(&mut self, weights: &[f32]) {
        let (codes, scales) = (self.codes.len(), self.scales.len());
        self.codes.resize(codes + weights.len(), 0);
        self.scales.resize(scales + weights.len() / self.cols, 0.0);
        let rows = self.codes[codes..].par_chunks_mut(self.cols).zip(weights.par_chunks(self.cols));
        rows.zip(&mut self.scales[scales..]).for_each(|((codes, weights), scale)| *scale = quantize(weights, codes));
    }

    fn finish(self: Box<Self>) -> Arc<dyn Form> {
        Arc::new(*self)
    }
}

impl Form for Int8 {
    fn decode(&self, start: usize, output: &mut [f32]) {
        let mut at = start;
        let mut rest = output;
        while !rest.is_empty() {
            let (row, col) = (at / self.cols, at % self.cols);
            let (now, later) = rest.split_at_mut(rest.len().min(self.cols - col));
            dequantize(&self.codes[at..at + now.len()], self.scales[row], now);
            at += now.len();
            rest = later;
        }
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() * 4
    }
}

/// Writes a row's codes and returns its scale. A row of zeros has the scale 0; not a number stays one.
fn quantize(weights: &[f32], codes: &mut [i8]) -> f32 {
    let scale = super::largest_magnitude(weights);
    let factor = if scale > 0.0 { 127.0 / scale } else { 0.0 };
    for (code, weight) in codes.iter_mut().zip(weights) {
        *code = (weight * factor).round_ties_even() as i8;
    }
    scale
}

simd_fn! {
    fn dequantize(codes: &[i8], scale: f32, output: &mut [f32]) {
        let _ = FMA;
        for (output, &code) in output.iter_mut().zip(codes) {
            *output = f32::from(code) * scale * (1.0 / 127.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use justtrain_weights::safetensors::SafetensorsFile;

    use super::*;
    use crate::simd::testing::at_every_level;

    #[test]
    fn codes_scales_and_values_are_bitsandbytes_to_the_last_bit() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quantization.safetensors");
        let goldens = SafetensorsFile::open(&path).unwrap();
        at_every_level(|level| {
            for case in ["whole", "many", "odd", "one", "zeros", "zero_rest", "middles"] {
                let read = |part: &str| goldens.read_f32(&format!("{case}.{part}")).unwrap();
                let shape = goldens.shape(&format!("{case}.weights")).unwrap();
                let mut made = Int8::with_capacity([shape[0], shape[1]]);
                made.push(&read("weights"));
                let codes: Vec<u8> = made.codes.iter().map(|&code| code as u8).collect();
                assert_eq!(codes, goldens.bytes(&format!("{case}.int8.codes")).unwrap(), "{level:?} {case}");
                assert_eq!(made.scales, read("int8.scales"), "{level:?} {case}");
                let mut values = vec![f32::NAN; codes.len()];
                made.decode(0, &mut values);
                assert_eq!(values, read("int8.values"), "{level:?} {case}");
            }
        });
    }

    #[test]
    fn what_is_not_a_number_stays_one() {
        let mut made = Int8::with_capacity([1, 3]);
        made.push(&[0.5, f32::NAN, 1.0]);
        let mut values = [0.0; 3];
        made.decode(0, &mut values);
        assert!(values.iter().all(|value| value.is_nan()));
    }
}
