//! 20 steps of the optimisers beside PyTorch, bitsandbytes, transformers and galore_torch (`scripts/golden/optimizers.py`),
//! and their memory.

use std::collections::BTreeMap;
use std::path::Path;

use justtrain_train::optim::{
    Adafactor, AdamW, AdamW8bit, Ema, Galore, Lion, Muon, Optimizer, Sgd, StateTensor, Update,
};
use justtrain_weights::safetensors::SafetensorsFile;

fn start(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f64 * 0.11).cos() as f32).collect()
}

fn gradient(len: usize, step: u64) -> Vec<f32> {
    (0..len).map(|i| ((i as f64 * 0.37 + step as f64).sin() * 10f64.powi(-((i % 3) as i32))) as f32).collect()
}

/// A matrix whose singular values lie apart, as those that look at singular vectors need it.
fn distinct_gradient(step: u64) -> Vec<f32> {
    let number = |i: usize| {
        let i = i as f64;
        ((i * i * 0.001 + step as f64).sin() * 0.8f64.powi((i / 500.0) as i32)) as f32
    };
    (0..4500).map(number).collect()
}

fn run(
    name: &str,
    optimizer: &mut dyn Optimizer,
    steps: std::ops::RangeInclusive<u64>,
    weights: &mut BTreeMap<&str, Vec<f32>>,
) {
    for step in steps {
        for (parameter, weights) in weights.iter_mut() {
            let shape: &[usize] = if *parameter == MATRIX { &[9, 500] } else { &[40] };
            let update = Update { name: parameter, shape, decays: true, step, learning_rate: 1e-2 };
            let gradient = match name {
                "muon" | "galore_adamw" if *parameter == MATRIX => distinct_gradient(step),
                _ => gradient(weights.len(), step),
            };
            optimizer.update(&update, weights, &gradient);
        }
    }
}

/// In a block, as Muon and GaLore look for them.
const MATRIX: &str = "layers.0.matrix";

fn weights() -> BTreeMap<&'static str, Vec<f32>> {
    BTreeMap::from([(MATRIX, start(4500)), ("vector", start(40))])
}

type Make = Box<dyn Fn() -> Box<dyn Optimizer>>;

/// Each with the bytes that it remembers of the matrix and the vector.
fn makers() -> [(&'static str, Make, u64); 10] {
    let adamw = |weight_decay| AdamW::new(0.9, 0.999, 1e-8, weight_decay);
    [
        ("adamw", Box::new(move || Box::new(adamw(0.1))), 4540 * 8),
        // 2 codes a number, 2 scales for each of 18 blocks; the vector stays in f32.
        ("adamw_8bit", Box::new(move || Box::new(AdamW8bit::new(adamw(0.1)))), 4500 * 2 + 18 * 8 + 40 * 8),
        ("adafactor", Box::new(|| Box::new(Adafactor::new(0.1))), (9 + 500 + 40) * 4),
        ("lion", Box::new(|| Box::new(Lion::new(0.9, 0.99, 0.1))), 4540 * 4),
        ("sgd", Box::new(|| Box::new(Sgd::new(0.0, false, 0.1))), 0),
        ("sgd_momentum", Box::new(|| Box::new(Sgd::new(0.9, false, 0.0))), 4540 * 4),
        ("sgd_nesterov", Box::new(|| Box::new(Sgd::new(0.9, true, 0.0))), 4540 * 4),
        ("muon", Box::new(move || Box::new(Muon::new(0.95, true, 0.1, adamw(0.1)))), 4500 * 4 + 40 * 8),
        // 4 of 9 dimensions, and both moments of 4 × 500.
        (
            "galore_adamw",
            Box::new(move || Box::new(Galore::new(4, 8, 2.0, 0.0, adamw(0.0)))),
            (9 * 4 + 2 * 4 * 500) * 4 + 40 * 8,
        ),
        ("ema", Box::new(|| Box::new(Ema::new(0.9, Box::new(Sgd::new(0.9, false, 0.0))))), 4540 * 8),
    ]
}

/// How far off a weight may be, on average and at worst.
fn tolerances(name: &str) -> [f32; 2] {
    match name {
        // A sum whose last bit differs may fall on the other side of half-way between two 8-bit codes, which moves that
        // weight by a part of a step of 0.01; all others agree to rounding.
        "adamw_8bit" => [2e-6, 5e-3],
        // AdamW divides a projected gradient by its own size, and with it the rounding of the projection.
        "galore_adamw" => [2e-6, 1e-4],
        _ => [2e-6, 2e-6],
    }
}

#[test]
fn twenty_steps_equal_the_references() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/optimizers.safetensors");
    let goldens = SafetensorsFile::open(&path).unwrap();
    for (name, make, _) in makers().into_iter().skip(1) {
        let mut weights = weights();
        let mut optimizer = make();
        run(name, &mut *optimizer, 1..=20, &mut weights);
        for (parameter, mut weights) in weights {
            optimizer.exchange(parameter, &mut weights);
            let parameter = parameter.trim_start_matches("layers.0.");
            let expected = goldens.read_f32(&format!("{name}.{parameter}")).unwrap();
            let off = |(got, want): (&f32, &f32)| (got - want).abs();
            let errors: Vec<f32> = weights.iter().zip(&expected).map(off).collect();
            let mean = errors.iter().sum::<f32>() / errors.len() as f32;
            let worst = errors.iter().fold(0.0f32, |worst, error| worst.max(*error));
            let [on_average, at_worst] = tolerances(name);
            assert!(mean < on_average, "{name} {parameter}: {mean} on average");
            assert!(worst < at_worst, "{name} {parameter}: {worst}");
        }
    }
}

/// State that was saved and taken back goes on to the same weights.
#[test]
fn memory_goes_on_where_it_was_saved() {
    for (name, make, expected) in makers() {
        let (mut whole, mut cut) = (weights(), weights());
        run(name, &mut *make(), 1..=6, &mut whole);
        let mut first = make();
        run(name, &mut *first, 1..=3, &mut cut);
        let owned = |(name, tensor): (String, StateTensor<'_>)| {
            let tensor = match tensor {
                StateTensor::F32(numbers) => StateTensor::F32(numbers.into_owned().into()),
                StateTensor::U8(codes) => StateTensor::U8(codes.into_owned().into()),
            };
            (name, tensor)
        };
        let state: BTreeMap<_, _> = first.state().into_iter().map(owned).collect();
        let bytes: u64 = state.values().map(StateTensor::bytes).sum();
        assert_eq!(bytes, expected, "{name}");
        let mut second = make();
        second.restore(state);
        run(name, &mut *second, 4..=6, &mut cut);
        assert_eq!(cut, whole, "{name}");
    }
}
