//! What the worker can do: one file a command, or two lines here.

mod data;
mod export;
mod probe;
mod serve;

use justtrain_train::estimate::{estimate, largest_models};
use justtrain_train::evaluate::evaluate;
use justtrain_train::recipe::Recipe;
use justtrain_train::run::train;
use justtrain_worker_api::{Command, Failure, FailureReason, Outcome};

use crate::pipe::{Pipe, stop_on_request};

pub(crate) fn run(command: Command, pipe: &Pipe) -> Result<Outcome, Failure> {
    let mut events = pipe.clone();
    match command {
        Command::CheckRecipe { recipe } => match Recipe::parse(&recipe) {
            Ok(recipe) => Ok(Outcome::RecipeChecked(recipe.summary())),
            Err(problems) => Err(Failure { reason: FailureReason::RecipeInvalid, problems }),
        },
        Command::Schema => Ok(Outcome::Schema { schema: Recipe::schema() }),
        Command::Train { recipe, model, run_dir, resume } => {
            train(&recipe, &model, &run_dir, resume, &mut events, &stop_on_request())
        }
        Command::Evaluate { recipe, model, data, options } => {
            evaluate(&recipe, &model, data.as_ref(), &options, &mut events).map(Outcome::Evaluated)
        }
        Command::Export { model, format, output } => export::run(&model, format, &output, &mut events),
        Command::Serve { model, device: _ } => serve::run(&model, pipe),
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
        Command::Probe { device: _ } => Ok(probe::run()),
    }
}
