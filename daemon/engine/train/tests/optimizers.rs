//! 20 steps of the optimisers beside bitsandbytes and transformers (`scripts/golden/optimizers.py`), and their memory.

use std::collections::BTreeMap;
use std::path::Path;

use justtrain_train::optim::{Adafactor, AdamW, AdamW8bit, Optimizer, StateTensor, Update};
use justtrain_weights::safetensors::SafetensorsFile;

fn start(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f64 * 0.11).cos() as f32).collect()
}

fn gradient(len: usize, step: u64) -> Vec<f32> {
    (0..len).map(|i| ((i as f64 * 0.37 + step as f64).sin() * 10f64.powi(-((i % 3) as i32))) as f32).collect()
}

fn run(optimizer: &mut dyn Optimizer, steps: std::ops::RangeInclusive<u64>, weights: &mut BTreeMap<&str, Vec<f32>>) {
    for step in steps {
        for (name, weights) in weights.iter_mut() {
            let shape: &[usize] = if *name == "matrix" { &[9, 500] } else { &[40] };
            let update = Update { name, shape, decays: true, step, learning_rate: 1e-2 };
            let gradient = gradient(weights.len(), step);
            optimizer.update(&update, weights, &gradient);
        }
    }
}

fn weights() -> BTreeMap<&'static str, Vec<f32>> {
    BTreeMap::from([("matrix", start(4500)), ("vector", start(40))])
}

type Make = Box<dyn Fn() -> Box<dyn Optimizer>>;

fn makers() -> [(&'static str, Make); 3] {
    let adamw = || AdamW::new(0.9, 0.999, 1e-8, 0.1);
    [
        ("adamw", Box::new(move || Box::new(adamw()))),
        ("adamw_8bit", Box::new(move || Box::new(AdamW8bit::new(adamw())))),
        ("adafactor", Box::new(|| Box::new(Adafactor::new(0.1)))),
    ]
}

#[test]
fn twenty_steps_equal_bitsandbytes_and_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/optimizers.safetensors");
    let goldens = SafetensorsFile::open(&path).unwrap();
    for (name, make) in makers().into_iter().skip(1) {
        let mut weights = weights();
        run(&mut *make(), 1..=20, &mut weights);
        for (parameter, weights) in weights {
            let expected = goldens.read_f32(&format!("{name}.{parameter}")).unwrap();
            let off = |(got, want): (&f32, &f32)| (got - want).abs();
            let errors: Vec<f32> = weights.iter().zip(&expected).map(off).collect();
            let mean = errors.iter().sum::<f32>() / errors.len() as f32;
            let worst = errors.iter().fold(0.0f32, |worst, error| worst.max(*error));
            // A sum whose last bit differs may fall on the other side of half-way between two 8-bit codes, which moves
            // that weight by a part of a step of 0.01; all others agree to rounding.
            assert!(mean < 2e-6, "{name} {parameter}: {mean} on average");
            assert!(worst < if name == "adamw_8bit" { 5e-3 } else { 2e-6 }, "{name} {parameter}: {worst}");
        }
    }
}

/// State that was saved and taken back goes on to the same weights.
#[test]
fn memory_goes_on_where_it_was_saved() {
    for (name, make) in makers() {
        let (mut whole, mut cut) = (weights(), weights());
        run(&mut *make(), 1..=6, &mut whole);
        let mut first = make();
        run(&mut *first, 1..=3, &mut cut);
        let owned = |(name, tensor): (String, StateTensor<'_>)| {
            let tensor = match tensor {
                StateTensor::F32(numbers) => StateTensor::F32(numbers.into_owned().into()),
                StateTensor::U8(codes) => StateTensor::U8(codes.into_owned().into()),
            };
            (name, tensor)
        };
        let state: BTreeMap<_, _> = first.state().into_iter().map(owned).collect();
        let bytes: u64 = state.values().map(StateTensor::bytes).sum();
        let expected = match name {
            "adamw" => 4540 * 8,
            // 2 codes a number, 2 scales for each of 18 blocks; the vector stays in f32.
            "adamw_8bit" => 4500 * 2 + 18 * 8 + 40 * 8,
            _ => (9 + 500 + 40) * 4,
        };
        assert_eq!(bytes, expected, "{name}");
        let mut second = make();
        second.restore(state);
        run(&mut *second, 4..=6, &mut cut);
        assert_eq!(cut, whole, "{name}");
    }
}
