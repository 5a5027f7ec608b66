//! Against bitsandbytes (`scripts/golden/quantization.py`).

use std::path::Path;

use justtrain_weights::safetensors::SafetensorsFile;

use super::super::Builder as _;
use super::*;
use crate::simd::testing::at_every_level;

const CASES: [&str; 7] = ["whole", "many", "odd", "one", "zeros", "zero_rest", "middles"];

fn goldens() -> SafetensorsFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quantization.safetensors");
    SafetensorsFile::open(&path).unwrap()
}

/// Codes and unquantised scales.
fn quantized(weights: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut builder = Builder::new(weights.len(), false);
    builder.push(weights);
    (builder.codes, builder.scales)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn decoded(matrix: &Nf4, len: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    matrix.decode(0, &mut values);
    values
}

#[test]
fn codes_scales_and_values_are_bitsandbytes_to_the_last_bit() {
    let goldens = goldens();
    at_every_level(|level| {
        for case in CASES {
            let read = |part: &str| goldens.read_f32(&format!("{case}.{part}")).unwrap();
            let weights = read("weights");
            let (codes, scales) = quantized(&weights);
            assert_eq!(codes, goldens.bytes(&format!("{case}.nf4.codes")).unwrap(), "{level:?} {case}");
            assert_eq!(bits(&scales), bits(&read("nf4.scales")), "{level:?} {case}");
            let matrix = Nf4 { codes, scales: Scales::Plain(scales) };
            assert_eq!(bits(&decoded(&matrix, weights.len())), bits(&read("nf4.values")), "{level:?} {case}");
        }
    });
}

#[test]
fn double_quantisation_is_bitsandbytes_to_the_last_bit() {
    let goldens = goldens();
    at_every_level(|level| {
        for case in CASES {
            let read = |part: &str| goldens.read_f32(&format!("{case}.{part}")).unwrap();
            let weights = read("weights");
            let (codes, scales) = quantized(&weights);
            let offset = read("double.offset")[0];
            let Scales::Double { offset: mean, .. } = Scales::double(&scales) else { unreachable!() };
            // bitsandbytes sums in f32, in an order that depends on the machine.
            assert!((mean - offset).abs() <= 2.0 * f32::EPSILON * offset, "{level:?} {case}: {mean} {offset}");
            let scales = Scales::double_around(&scales, offset);
            let Scales::Double { scales: blockwise, .. } = &scales else { unreachable!() };
            assert_eq!(blockwise.codes(), goldens.bytes(&format!("{case}.double.codes")).unwrap(), "{level:?} {case}");
            assert_eq!(bits(blockwise.scales()), bits(&read("double.scales")), "{level:?} {case}");
            let values = decoded(&Nf4 { codes, scales }, weights.len());
            assert_eq!(bits(&values), bits(&read("double.values")), "{level:?} {case}");
        }
    });
}

#[test]
fn what_is_not_a_number_stays_one() {
    for len in [64, 65, 200] {
        let mut weights = vec![0.1; len];
        weights[len - 1] = f32::NAN;
        for double_quantization in [false, true] {
            let mut builder = Box::new(Builder::new(len, double_quantization));
            builder.push(&weights);
            let mut last = [0.0];
            builder.finish().decode(len - 1, &mut last);
            assert!(last[0].is_nan());
        }
    }
}
