//! 1,000 steps of every schedule beside transformers and PyTorch (`scripts/golden/schedules.py`), from the same names and
//! settings, as a recipe has them.

mod goldens;

use std::path::PathBuf;

use justtrain_train::optim::schedule::{PlateauState, Schedule, Shape};
use justtrain_train::recipe::Recipe;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::RecipeSource;

use goldens::{doubles, root};

const STEPS: u64 = 1000;
/// Both sides compute in float64; the order of operations differs in the last bits.
const TOLERANCE: f64 = 1e-13;

/// Name in the file, `lr_scheduler_type`, warm-up, `lr_scheduler_kwargs`.
const CASES: [(&str, &str, &str, &str); 15] = [
    ("constant", "constant", "0", "{}"),
    ("constant_with_warmup", "constant_with_warmup", "50", "{}"),
    ("linear", "linear", "50", "{}"),
    ("linear_ratio", "linear", "0.0333", "{}"),
    ("cosine", "cosine", "50", "{}"),
    ("cosine_waves", "cosine", "50", "{num_cycles: 1.75}"),
    ("cosine_with_restarts", "cosine_with_restarts", "50", "{num_cycles: 4}"),
    ("cosine_with_min_lr", "cosine_with_min_lr", "50", "{min_lr: 2e-5}"),
    ("cosine_with_min_lr_rate", "cosine_with_min_lr", "50", "{min_lr_rate: 0.1, num_cycles: 1.5}"),
    ("polynomial", "polynomial", "50", "{power: 2.5, lr_end: 1e-6}"),
    ("polynomial_default", "polynomial", "0", "{}"),
    ("inverse_sqrt", "inverse_sqrt", "50", "{}"),
    ("inverse_sqrt_timescale", "inverse_sqrt", "0", "{timescale: 300}"),
    ("warmup_stable_decay", "warmup_stable_decay", "50", "{num_decay_steps: 0.2}"),
    (
        "warmup_stable_decay_curves",
        "warmup_stable_decay",
        "100",
        "{num_decay_steps: 300, num_stable_steps: 400, warmup_type: cosine, decay_type: 1-sqrt, min_lr_ratio: 0.1}",
    ),
];

fn schedule(kind: &str, warmup: &str, kwargs: &str) -> Schedule {
    let text = format!(
        "model_name_or_path: m\ndataset: d.json\nlearning_rate: 2e-4\nlr_scheduler_type: {kind}\nwarmup_steps: {warmup}\n\
         lr_scheduler_kwargs: {kwargs}\n"
    );
    let source = RecipeSource { text, file: "r.yaml".to_owned(), base_dir: PathBuf::from("/") };
    Recipe::parse(&source).unwrap_or_else(|problems| panic!("{problems:?}")).schedule(STEPS)
}

fn goldens() -> SafetensorsFile {
    SafetensorsFile::open(&root("daemon/engine/train/fixtures/schedules.safetensors")).unwrap()
}

fn assert_equal(name: &str, got: &[f64], expected: &[f64]) {
    assert_eq!((got.len(), expected.len()), (STEPS as usize, STEPS as usize), "{name}");
    for (step, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= TOLERANCE * 2e-4, "{name}, step {step}: {got}, expected {expected}");
    }
}

#[test]
fn every_step_equals_transformers() {
    let goldens = goldens();
    for (name, kind, warmup, kwargs) in CASES {
        let schedule = schedule(kind, warmup, kwargs);
        let rates: Vec<f64> = (0..STEPS).map(|step| schedule.learning_rate(step)).collect();
        assert_equal(name, &rates, &doubles(&goldens, name));
    }
}

/// A validation after every step, of a loss that falls, stays and rises again.
#[test]
fn reduction_on_a_plateau_equals_torch() {
    let goldens = goldens();
    let losses = doubles(&goldens, "plateau_losses");
    for (name, kwargs) in [
        ("reduce_lr_on_plateau", "{factor: 0.8, patience: 3, cooldown: 2, min_lr: 1e-5}"),
        ("reduce_lr_on_plateau_abs", "{factor: 0.5, patience: 0, threshold: 0.05, threshold_mode: abs, eps: 1e-6}"),
    ] {
        let schedule = schedule("reduce_lr_on_plateau", "0", kwargs);
        let Shape::ReduceOnPlateau(rule) = &schedule.shape else { panic!("{name}") };
        let mut state = PlateauState::new(schedule.learning_rate);
        let rate = |loss: &f64| {
            rule.observe(&mut state, *loss);
            // What a checkpoint keeps is all that there is.
            state = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
            state.learning_rate
        };
        assert_equal(name, &losses.iter().map(rate).collect::<Vec<_>>(), &doubles(&goldens, name));
    }
}
