//! What tests against reference values share: rows, gradients and training steps.

#[path = "../goldens/mod.rs"]
mod goldens;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;
use justtrain_kernels::Targets;
use justtrain_model::parameters::Trained;
use justtrain_model::{Decoder, Input, Mode};
use justtrain_train::backward::Backward;
use justtrain_train::objectives::Sft;
use justtrain_train::optim::schedule::{Schedule, Shape};
use justtrain_train::optim::{AdamW, Groups, Optimizer};
use justtrain_train::regularizers::Regularizers;
use justtrain_train::step::{MicroBatch, Step};
use justtrain_weights::safetensors::SafetensorsFile;

pub(crate) use goldens::{doubles, root};

/// Whole numbers of a file of reference values.
pub(crate) fn ints(file: &SafetensorsFile, name: &str) -> Vec<i64> {
    let (numbers, _) = file.bytes(name).unwrap().as_chunks::<8>();
    numbers.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
}

/// One sequence.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) ids: Vec<u32>,
    /// −100 where a token does not count.
    pub(crate) labels: Vec<i64>,
    /// What an encoder reads, where there is one.
    pub(crate) source: Vec<u32>,
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

pub(crate) fn batch(rows: &[Row]) -> (Input, Arc<Targets>) {
    let (mut ids, mut starts, mut targets) = (Vec::new(), vec![0], Targets::default());
    let (mut sources, mut source_starts) = (Vec::new(), vec![0]);
    for Row { ids: row, labels, source } in rows {
        for (at, &label) in labels.iter().enumerate().skip(1).filter(|&(_, &label)| label >= 0) {
            targets.rows.push(ids.len() + at - 1);
            targets.tokens.push(label as u32);
        }
        ids.extend(row);
        starts.push(ids.len());
        sources.extend(source);
        source_starts.push(sources.len());
    }
    let input = Input::packed(ids, &starts);
    let input = if sources.is_empty() { input } else { input.with_sources(&sources, &source_starts) };
    (input, Arc::new(targets))
}

pub(crate) fn micro_batch(rows: &[Row]) -> MicroBatch {
    let (input, targets) = batch(rows);
    MicroBatch { task: 0, input, targets, answers: Vec::new(), dropout_seed: None }
}

/// A parameter's name in PyTorch: PEFT's where it belongs to an adapter.
pub(crate) fn torch_name(name: &str) -> String {
    match name {
        name if name.contains(".lora_") && !name.contains(".lora_embedding_") => {
            format!("base_model.model.{name}.weight")
        }
        name if Trained::Adapters.includes(name) => format!("base_model.model.{name}"),
        name => name.to_owned(),
    }
}

/// Loss and gradients by PyTorch's names, which are the same with checkpointing and without.
pub(crate) fn gradients(decoder: &mut Decoder, trained: Trained<'_>, rows: &[Row]) -> (f64, Vec<(String, Vec<f32>)>) {
    let kept = gradients_of(decoder, trained, rows, false);
    assert!(kept == gradients_of(decoder, trained, rows, true), "with checkpointing");
    kept
}

fn gradients_of(
    decoder: &mut Decoder,
    trained: Trained<'_>,
    rows: &[Row],
    checkpointing: bool,
) -> (f64, Vec<(String, Vec<f32>)>) {
    let batch = micro_batch(rows);
    let count = batch.targets.len() as f32;
    let (objective, regularizers) = (&Sft::default(), &Regularizers::default());
    let backward = Backward {
        objective,
        trained,
        checkpointing,
        regularizers,
        mode: Mode::TUNED,
        divisor: count,
        loss_scale: 1.0,
    };
    let mut gradients = Vec::new();
    let (loss, _) = backward.run(decoder, &batch, &mut |parameter, gradient| {
        gradients.push((torch_name(&parameter.name), gradient));
    });
    (loss / f64::from(count), gradients)
}

/// Losses and gradient norms of training on the same rows at every step.
pub(crate) fn train(
    decoder: &mut Decoder,
    trained: Trained<'_>,
    optimizer: &mut dyn Optimizer,
    rows: &[Row],
    schedule: &Schedule,
) -> (Vec<f64>, Vec<f64>) {
    let step = |index: u64| {
        let learning_rate = schedule.learning_rate(index);
        let (groups, regularizers) = (&Groups::default(), &Regularizers::default());
        let number = index + 1;
        let step = Step {
            objective: &Sft::default(),
            trained,
            checkpointing: false,
            max_grad_norm: 1.0,
            loss_scale: None,
            number,
            learning_rate,
            groups,
            regularizers,
            seed: 0,
        };
        let measured = step.run(decoder, optimizer, vec![micro_batch(rows)]);
        (measured.loss, measured.grad_norm)
    };
    (0..schedule.total_steps).map(step).unzip()
}

/// `get_cosine_schedule_with_warmup` as it is by default.
pub(crate) const COSINE: Shape = Shape::Cosine { cycles: 0.5, least: 0.0 };

pub(crate) fn adamw() -> AdamW {
    AdamW::new(0.9, 0.999, 1e-8, 0.0)
}

pub(crate) fn assert_relative(got: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (step, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got / expected - 1.0).abs() <= tolerance, "{what} {step}: {got}, expected {expected}");
    }
}

/// The two sequences that a tiny model's reference values are of.
pub(crate) fn tiny_rows(folder: &Path) -> Vec<Row> {
    let goldens = SafetensorsFile::open(&folder.join("goldens.safetensors")).unwrap();
    let ids = |name: String| -> Vec<u32> { ints(&goldens, &name).into_iter().map(|id| id as u32).collect() };
    let row = |i| Row {
        ids: ids(format!("ids.{i}")),
        labels: ints(&goldens, &format!("labels.{i}")),
        source: goldens.shape(&format!("source.{i}")).map_or(Vec::new(), |_| ids(format!("source.{i}"))),
    };
    (0..2).map(row).collect()
}
