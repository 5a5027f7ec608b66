//! What unit tests of training share: the tiny llama, its rows, and their loss curves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use justtrain_kernels::Targets;
use justtrain_model::{Decoder, Input, WeightFormats};
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::RecipeSource;

use crate::recipe::Recipe;
use crate::step::MicroBatch;

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

/// The two sequences of the tiny llama's reference values, packed.
pub(crate) fn batch() -> MicroBatch {
    let goldens = SafetensorsFile::open(&model().join("goldens.safetensors")).unwrap();
    let ints = |name: String| -> Vec<i64> {
        let (numbers, _) = goldens.bytes(&name).unwrap().as_chunks::<8>();
        numbers.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
    };
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
