//! Looks at data files, and writes the built-in sets.

use std::path::PathBuf;

use justtrain_data::{EncodeOptions, generators};
use justtrain_train::{EventSink, adapter_template, open_encoder};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{DataFile, DataLanguage, Event, Failure, FailureReason, ModelFiles, Outcome, ProblemCode};

pub(super) fn check(
    data: &DataFile,
    model: Option<&ModelFiles>,
    cutoff_len: u32,
    events: &mut dyn EventSink,
) -> Result<Outcome, Failure> {
    let encoder = model.map(encoder).transpose()?;
    let progress = |done: u64, total: u64| {
        if done.is_multiple_of(1000) {
            events.emit(Event::Progress { done, total });
        }
    };
    justtrain_data::check(data, encoder.as_ref(), cutoff_len as usize, progress)
        .map(Outcome::DataChecked)
        .map_err(|problem| problem.because(FailureReason::DataInvalid))
}

pub(super) fn preview(
    data: &DataFile,
    model: &ModelFiles,
    cutoff_len: u32,
    offset: u32,
    rows: u32,
) -> Result<Outcome, Failure> {
    let encoder = encoder(model)?;
    let options = EncodeOptions { cutoff_len: cutoff_len as usize, train_on_prompt: false, mask_history: false };
    justtrain_data::preview(data, &encoder, &options, offset as usize, rows as usize)
        .map(|rows| Outcome::DataPreviewed { rows })
        .map_err(|problem| problem.because(FailureReason::DataInvalid))
}

pub(super) fn generate(
    kind: &str,
    count: u32,
    seed: u64,
    language: DataLanguage,
    output: PathBuf,
) -> Result<Outcome, Failure> {
    match generators::generate(kind, count, seed, language, &output) {
        Ok(rows) => Ok(Outcome::DataGenerated { path: output, rows }),
        Err(problem) if problem.code == ProblemCode::DiskFull => Err(problem.because(FailureReason::DiskFull)),
        Err(problem) => Err(problem.because(FailureReason::DataInvalid)),
    }
}

fn encoder(model: &ModelFiles) -> Result<justtrain_data::Encoder, Failure> {
    let opened = Checkpoint::open(&model.path)
        .and_then(|checkpoint| open_encoder(&checkpoint, adapter_template(model.adapter.as_deref())));
    opened.map(|(encoder, _)| encoder).map_err(|problem| problem.because(FailureReason::ModelInvalid))
}
