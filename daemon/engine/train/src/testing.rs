//! What unit tests of training share: the tiny llama, its rows, and their loss curves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use justtrain_kernels::Targets;
use justtrain_model::parameters::Trained;
use justtrain_model::{Decoder, Input, WeightFormats};
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::RecipeSource;

use crate::objectives::Objective;
use crate::optim::Groups;
use crate::recipe::Recipe;
use crate::regularizers::Regularizers;
use crate::step::{MicroBatch, Step};

pub(crate) fn recipe(more: &str) -> Recipe {
    let text = format!("model_name_or_path: m\ndataset: d.json\nfinetuning_type: full\nlearning_rate: 2e-3\n{more}\n");
    Recipe::parse(&RecipeSource { text, file: "r.yaml".to_owned(), base_dir: PathBuf::from("/") }).unwrap()
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/fixtures/tiny-llama")
}

pub(crate) fn decoder() -> Decoder {
    Decoder::load(&Checkpoint::open(&model()).unwrap(), &Device::flex(), WeightFormats::default()).unwrap()
}

/// A step of tests against PyTorch: clipped at 1, every other one with checkpointing.
pub(crate) fn step<'a>(
    objective: &'a dyn Objective,
    trained: Trained<'a>,
    number: u64,
    groups: &'a Groups,
    regularizers: &'a Regularizers,
) -> Step<'a> {
    let (checkpointing, max_grad_norm, learning_rate) = (number.is_multiple_of(2), 1.0, 2e-3);
    let loss_scale = None;
    Step {
        objective,
        trained,
        checkpointing,
        max_grad_norm,
        loss_scale,
        number,
        learning_rate,
        groups,
        regularizers,
        seed: 0,
    }
}

/// The largest difference.
pub(crate) fn off_by(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max)
}

/// Whole numbers of a file of reference values.
pub(crate) fn ints(file: &SafetensorsFile, name: &str) -> Vec<i64> {
    let (numbers, _) = file.bytes(name).unwrap().as_chunks::<8>();
    numbers.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
}

/// The two sequences of the tiny llama's reference values, packed.
pub(crate) fn batch() -> MicroBatch {
    let goldens = SafetensorsFile::open(&model().join("goldens.safetensors")).unwrap();
    let ints = |name: String| ints(&goldens, &name);
    let (mut ids, mut starts, mut targets) = (Vec::new(), vec![0], Targets::default());
    for index in 0..2 {
        for (at, label) in
            ints(format!("labels.{index}")).into_iter().enumerate().skip(1).filter(|(_, label)| *label >= 0)
        {
            targets.rows.push(ids.len() + at - 1);
            targets.tokens.push(label as u32);
        }
        ids.extend(ints(format!("ids.{index}")).into_iter().map(|id| id as u32));
        starts.push(ids.len());
    }
    MicroBatch {
        task: 0,
        input: Input::packed(ids, &starts),
        targets: Arc::new(targets),
        answers: Vec::new(),
        dropout_seed: None,
    }
}

/// `float64` numbers of a file of reference values.
pub(crate) fn doubles(file: &SafetensorsFile, name: &str) -> Vec<f64> {
    let (numbers, _) = file.bytes(name).unwrap().as_chunks::<8>();
    numbers.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
}

pub(crate) fn fixture(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)).unwrap()
}
