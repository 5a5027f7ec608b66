//! Several trainings one after the other: each begins with what the one before has left.
//!
//! All but the last stage have a folder of their own in the run's folder, `stages/1-sft/`, with their checkpoints while they
//! train and with their result for good; the last one trains in the run's folder itself, as a run of one stage does. A stage that is
//! done says so in `stage.json`, so a run that is resumed goes on in the first stage that does not.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use justtrain_data::Sample;
use justtrain_worker_api::{
    Event, Failure, FailureReason, LogLevel, ModelFiles, Outcome, Phase, Problem, ProblemCode, RecipeSource,
    StageOfJob, Text, TrainResult,
};

use crate::checkpoint::{cannot_write, handed};
use crate::continual::{FISHER, ForgettingReport, read_scores, reservoir, write_report};
use crate::recipe::{Recipe, StagePlan};
use crate::run::{Among, BASELINE, Place, SCORES, plan, train_recipe};
use crate::{EventSink, StopToken};

const DONE: &str = "stage.json";

pub(crate) fn train(
    stages: &[StagePlan],
    source: &RecipeSource,
    model: &ModelFiles,
    run_dir: &Path,
    resume: bool,
    events: &mut dyn EventSink,
    stop: &StopToken,
) -> Result<Outcome, Failure> {
    // All data is read before the first step: a mistake in the last stage's is found now and not in the night.
    let recipes: Vec<&Recipe> = stages.iter().map(|stage| &stage.recipe).collect();
    events.phase(Phase::Tokenizing);
    let plans = plan(&recipes, model)?;
    let steps: Vec<u64> = plans.iter().map(|plan| plan.steps).collect();
    let total_steps = steps.iter().sum();
    let reports = recipes.iter().any(|recipe| recipe.forgetting_report);
    if let Some((stage, _)) = stages.iter().zip(&plans).find(|(_, plan)| reports && plan.validation.is_empty()) {
        return Err(nothing_to_report_on(&stage.name).because(FailureReason::RecipeInvalid));
    }
    let watched: Vec<Vec<Sample>> = plans.iter().filter(|_| reports).map(|plan| plan.validation.clone()).collect();
    let folder_of = |index: usize| match index + 1 == stages.len() {
        true => run_dir.to_owned(),
        false => stage_dir(run_dir, index, &stages[index].name),
    };

    let (mut handed, mut results) = (None, Vec::new());
    for (index, stage) in stages.iter().enumerate() {
        let last = index + 1 == stages.len();
        let folder = folder_of(index);
        let done = if resume && !last { read_result(&folder) } else { None };
        let result = match done {
            Some(result) => result,
            None => {
                let first_step: u64 = steps[..index].iter().sum();
                let mut of_stage = OfStage {
                    events,
                    stage: StageOfJob {
                        name: stage.name.clone(),
                        number: index as u64 + 1,
                        count: stages.len() as u64,
                    },
                    first_step,
                    total_steps,
                    begins: index == 0 || results.is_empty(),
                };
                of_stage.events.emit(begins(index, stages, steps[index]));
                let (recipe, model) = going_on(&stage.recipe, model, handed.as_deref())?;
                let earlier = match recipe.replay_ratio > 0.0 {
                    true => {
                        reservoir(plans[..index].iter().flat_map(|plan| &plan.train), recipe.replay_buffer, recipe.seed)
                    }
                    false => Vec::new(),
                };
                let before = (index > 0).then(|| folder_of(index - 1));
                let fisher = before.as_ref().map(|folder| folder.join(FISHER)).filter(|path| path.exists());
                let remembered = stages[index + 1..].iter().any(|next| next.recipe.ewc_lambda.is_some());
                let among = Among {
                    earlier: &earlier,
                    fisher: fisher.as_deref(),
                    remembered,
                    optimizer: before.as_deref().filter(|_| stage.recipe.keep_optimizer_state),
                    hands_on: stages.get(index + 1).is_some_and(|next| next.recipe.keep_optimizer_state),
                    watched: &watched,
                    is_first: index == 0,
                };
                let place = Place { run_dir: &folder, resume, among };
                let outcome = train_recipe(&recipe, source, &model, place, &mut of_stage, stop)?;
                let Outcome::Trained { stopped, result } = outcome else { return Ok(outcome) };
                if !stopped && last {
                    before.iter().for_each(|folder| handed::forget(folder));
                }
                if stopped || last {
                    results.push(result);
                    if reports && !stopped {
                        report(stages, &folder_of, events)?;
                    }
                    return Ok(Outcome::Trained { stopped, result: together(&results) });
                }
                finish(&folder, &result)?;
                before.iter().for_each(|folder| handed::forget(folder));
                result
            }
        };
        handed = Some(result.adapter.clone());
        results.push(result);
    }
    unreachable!("the last stage returns")
}

fn nothing_to_report_on(stage: &str) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        format!("stage \"{stage}\" has no held-out rows, on which forgetting could be measured"),
        format!("阶段“{stage}”没有留出的数据，无法测量遗忘"),
    )
    .key("forgetting_report")
    .found("0 held-out rows")
    .expected("at least one in every stage")
    .fix("set val_size, or remove forgetting_report", "请设置 val_size，或删除 forgetting_report")
}

/// Puts the stages' rows together.
fn report(
    stages: &[StagePlan],
    folder_of: &dyn Fn(usize) -> PathBuf,
    events: &mut dyn EventSink,
) -> Result<(), Failure> {
    let baseline = read_scores(&folder_of(0).join(BASELINE));
    let rows: Option<Vec<Vec<f64>>> =
        (0..stages.len()).map(|index| read_scores(&folder_of(index).join(SCORES))).collect();
    // A run that was begun by an earlier version may lack some.
    let (Some(baseline), Some(rows)) = (baseline, rows) else { return Ok(()) };
    let report = ForgettingReport::new(stages.iter().map(|stage| stage.name.clone()).collect(), baseline, rows);
    report.events().into_iter().for_each(|line| events.emit(line));
    write_report(&folder_of(stages.len() - 1), &report).map_err(|problem| problem.because(FailureReason::DiskFull))
}

fn stage_dir(run_dir: &Path, index: usize, name: &str) -> PathBuf {
    let plain: String = name.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect();
    run_dir.join("stages").join(format!("{}-{plain}", index + 1))
}

/// The adapter of the stage before is gone on with; weights are the model that the next stage begins with.
fn going_on(recipe: &Recipe, model: &ModelFiles, handed: Option<&Path>) -> Result<(Recipe, ModelFiles), Failure> {
    let Some(folder) = handed else { return Ok((recipe.clone(), model.clone())) };
    if recipe.trains_weights() {
        return Ok((recipe.clone(), ModelFiles { path: folder.to_owned(), ..model.clone() }));
    }
    let recipe = recipe.going_on_with(folder).map_err(|problem| problem.because(FailureReason::ModelInvalid))?;
    Ok((recipe, model.clone()))
}

/// What a finished stage leaves: its result, and not its checkpoints.
fn finish(folder: &Path, result: &TrainResult) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(result).expect("a result is JSON");
    let (place, partial) = (folder.join(DONE), folder.join("stage.json.partial"));
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &place)
    });
    written.map_err(|error| cannot_write(&place, &error).because(FailureReason::DiskFull))?;
    let checkpoints = folder.join("checkpoints");
    match fs::remove_dir_all(&checkpoints) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(cannot_write(&checkpoints, &error).because(FailureReason::DiskFull))
        }
        _ => Ok(()),
    }
}

fn read_result(folder: &Path) -> Option<TrainResult> {
    serde_json::from_str(&fs::read_to_string(folder.join(DONE)).ok()?).ok()
}

/// Steps and time of all stages; the end is the last one's.
fn together(results: &[TrainResult]) -> TrainResult {
    let last = results.last().expect("at least one stage has trained");
    let tokens: f64 = results.iter().map(|result| result.tokens_per_second * result.seconds).sum();
    let seconds: f64 = results.iter().map(|result| result.seconds).sum();
    TrainResult {
        steps: results.iter().map(|result| result.steps).sum(),
        first_loss: results[0].first_loss,
        tokens_per_second: if seconds > 0.0 { tokens / seconds } else { 0.0 },
        peak_memory_bytes: results.iter().map(|result| result.peak_memory_bytes).max().unwrap_or(0),
        seconds,
        ..last.clone()
    }
}

fn begins(index: usize, stages: &[StagePlan], steps: u64) -> Event {
    let (number, count, name) = (index + 1, stages.len(), &stages[index].name);
    let text = Text::new(
        format!("stage {number} of {count}, \"{name}\": {steps} steps"),
        format!("第 {number}/{count} 阶段“{name}”：{steps} 步"),
    );
    Event::Log { level: LogLevel::Info, text }
}

/// Counts a stage's steps on from those of the stages before, and says which stage they are of.
struct OfStage<'a> {
    events: &'a mut dyn EventSink,
    stage: StageOfJob,
    first_step: u64,
    /// Of all stages.
    total_steps: u64,
    /// Whether this is the first stage that trains in this process.
    begins: bool,
}

impl EventSink for OfStage<'_> {
    fn emit(&mut self, mut event: Event) {
        let (before, all) = (self.first_step, self.total_steps);
        match &mut event {
            Event::Started { .. } if !self.begins => return,
            Event::Started { first_step, total_steps, .. } => {
                *first_step += before;
                *total_steps = all;
            }
            Event::Step { step, total_steps, seconds_left, stage, .. } => {
                *stage = Some(self.stage.clone());
                let left_of_stage = total_steps.saturating_sub(*step);
                *step += before;
                *total_steps = all;
                // As long a step as this stage's, for want of better.
                if left_of_stage > 0 {
                    *seconds_left = *seconds_left / left_of_stage as f64 * all.saturating_sub(*step) as f64;
                }
            }
            Event::StepSkipped { step, .. }
            | Event::Evaluation { step, .. }
            | Event::Tasks { step, .. }
            | Event::Checkpoint { step, .. } => *step += before,
            _ => {}
        }
        self.events.emit(event);
    }
}
