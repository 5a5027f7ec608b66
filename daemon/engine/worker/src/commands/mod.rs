//! What the worker can do: one file a command, or two lines here.

mod data;
mod export;
mod probe;
mod serve;

use justtrain_model::device;
use justtrain_model::kernels::parity::{Difference, differences};
use justtrain_train::estimate::{estimate, largest_models};
use justtrain_train::evaluate::evaluate;
use justtrain_train::recipe::Recipe;
use justtrain_train::run::train;
use justtrain_worker_api::{Command, DevicePick, Failure, FailureReason, OpReport, Outcome, RecipeSource};

use crate::allocator::keep_freed_pages;
use crate::pipe::{Pipe, stop_on_request};

pub(crate) fn run(command: Command, pipe: &Pipe) -> Result<Outcome, Failure> {
    let mut events = pipe.clone();
    match command {
        Command::CheckRecipe { recipe } => check_recipe(&recipe),
        Command::Schema => Ok(Outcome::Schema { schema: Recipe::schema() }),
        Command::Train { recipe, model, run_dir, resume } => {
            keep_freed_pages();
            train(&recipe, &model, &run_dir, resume, &mut events, &stop_on_request())
        }
        Command::Evaluate { recipe, model, data, options } => {
            evaluate(&recipe, &model, data.as_ref(), &options, &mut events).map(Outcome::Evaluated)
        }
        Command::Export { model, format, output } => export::run(&model, format, &output, &mut events),
        Command::Serve { model, device } => serve::run(&model, device, pipe),
        Command::DataCheck { data, model, cutoff_len } => data::check(&data, model.as_ref(), cutoff_len, &mut events),
        Command::DataPreview { data, model, cutoff_len, offset, rows } => {
            data::preview(&data, &model, cutoff_len, offset, rows)
        }
        Command::DataGenerate { kind, count, seed, language, output } => {
            data::generate(&kind, count, seed, language, output)
        }
        Command::Estimate { recipe, model, room, past_runs } => {
            let estimate = estimate(&recipe, &model, room, past_runs.as_deref(), &mut events)?;
            Ok(Outcome::Estimated(Box::new(estimate)))
        }
        Command::LargestModels { models, room, batch_tokens } => {
            Ok(Outcome::LargestModels { methods: largest_models(&models, room, batch_tokens) })
        }
        Command::Probe { device } => probe::run(device),
        Command::CheckOps { device } => check_ops(device),
    }
}

/// The summary names the device that `auto` stands for, so that the daemon knows which jobs wait for each other.
fn check_recipe(source: &RecipeSource) -> Result<Outcome, Failure> {
    let invalid = |problems| Failure { reason: FailureReason::RecipeInvalid, problems };
    let mut summary = Recipe::parse(source).map_err(invalid)?.summary();
    let (device, _) = device::open(summary.device).map_err(|problem| invalid(vec![problem.file(&source.file)]))?;
    summary.device = device;
    Ok(Outcome::RecipeChecked(summary))
}

fn check_ops(device: DevicePick) -> Result<Outcome, Failure> {
    let (_, device) = device::open(device).map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    let report = |Difference { op, error }| OpReport { op: op.to_owned(), error: f64::from(error) };
    Ok(Outcome::OpsChecked { ops: differences(&device).into_iter().map(report).collect() })
}
