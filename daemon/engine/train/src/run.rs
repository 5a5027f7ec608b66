//! A training run from recipe to adapter.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use justtrain_data::{Conversation, Encoder, Judgement, Labels, MixedSampler, MixedState, Sample, Sampler};
use justtrain_model::adapters::{LoraConfig, attach_beside, attach_lora, base_model, load_peft};
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, apply_tuned, device, families};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{
    Event, Failure, FailureReason, LogLevel, ModelFiles, Outcome, Phase, Problem, ProblemCode, RecipeSource, Rewards,
    Text, TrainResult,
};
use sha2::{Digest, Sha256};

use crate::checkpoint::handed::{self, Handed};
use crate::checkpoint::{Checkpoints, RunState, TrainedModel, cannot_write, hex, save_final};
use crate::classes::{attach_head, labels};
use crate::continual::{Ewc, FISHER, Lwf, Pass, remember, write_scores};
use crate::early_stopping::Best;
use crate::evaluate::{Validation, loss_on, validate};
use crate::loss_scale::LossScale;
use crate::objectives::{self, Background};
use crate::optim;
use crate::prepare::{check_lengths, encode_rows, open_reader, read_rows};
use crate::recipe::{FinetuningType, Recipe};
use crate::regularizers::Regularizers;
use crate::tasks::HeldOut;
use crate::teacher::Teacher;
use crate::trainable::{self, Stage, Trainable};
use crate::trainer::{Settings, Stepped, Trainer};
use crate::{EventSink, StopToken, memory};
use crate::{staged, tasks};

/// Trains into `run_dir`; with `resume`, goes on from its newest whole checkpoint, with the very losses of a run that
/// was never interrupted.
pub fn train(
    source: &RecipeSource,
    model: &ModelFiles,
    run_dir: &Path,
    resume: bool,
    events: &mut dyn EventSink,
    stop: &StopToken,
) -> Result<Outcome, Failure> {
    let recipe =
        Recipe::parse(source).map_err(|problems| Failure { reason: FailureReason::RecipeInvalid, problems })?;
    match recipe.stages().as_slice() {
        [only] => {
            train_recipe(&only.recipe, source, model, Place { run_dir, resume, among: Among::default() }, events, stop)
        }
        stages => staged::train(stages, source, model, run_dir, resume, events, stop),
    }
}

/// Where a run keeps its files, and whether it goes on from what is there.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) run_dir: &'a Path,
    pub(crate) resume: bool,
    pub(crate) among: Among<'a>,
}

/// What a stage knows of the others.
#[derive(Clone, Copy, Default)]
pub(crate) struct Among<'a> {
    /// Rows of earlier stages that are learnt again.
    pub(crate) earlier: &'a [Sample],
    /// What the stage before has left to hold on to.
    pub(crate) fisher: Option<&'a Path>,
    /// Whether the next one wants to know such things of this one.
    pub(crate) remembered: bool,
    /// Where the stage before has left what its optimiser remembers, where this one goes on with it.
    pub(crate) optimizer: Option<&'a Path>,
    /// Whether the next one goes on with what this one's remembers.
    pub(crate) hands_on: bool,
    /// Held-out rows of every stage, on which this one's end is measured.
    pub(crate) watched: &'a [Vec<Sample>],
    /// Whether the model as it is before the first step is measured, too.
    pub(crate) is_first: bool,
}

/// A stage's row of the forgetting report, and that of the model before the first stage.
pub(crate) const SCORES: &str = "scores.json";
pub(crate) const BASELINE: &str = "baseline.json";

/// One stage, or the only one.
pub(crate) fn train_recipe(
    recipe: &Recipe,
    source: &RecipeSource,
    model: &ModelFiles,
    Place { run_dir, resume, among }: Place<'_>,
    events: &mut dyn EventSink,
    stop: &StopToken,
) -> Result<Outcome, Failure> {
    let (device_name, device) = device::open(recipe.device()).map_err(|problem| no_device(problem, source))?;

    events.phase(Phase::LoadingModel);
    let checkpoint = Checkpoint::open(&model.path).map_err(model_invalid)?;
    let template = recipe.chat_template().map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    let (encoder, warning) = open_reader(recipe, &checkpoint)?;
    warning.iter().for_each(|warning| events.warn(warning));
    let teacher = Teacher::find(recipe, model, &encoder)?;
    let mut decoder = Decoder::load(&checkpoint, &device, recipe.weight_formats()).map_err(model_invalid)?;
    let rows = rows_of_tasks(recipe)?;
    let labels = labels(recipe, &decoder, recipe.adapter_path().as_deref(), &rows[0].0)?;
    attach_head(recipe, &labels, &mut decoder)?;
    let trained = match recipe.finetuning_type {
        FinetuningType::Full | FinetuningType::Freeze => {
            TrainedModel::Weights { config: checkpoint.config().clone(), template }
        }
        FinetuningType::Lora => {
            let config = adapt(recipe, &model.name, &checkpoint, &mut decoder, events)?;
            TrainedModel::Adapter { config, base_model: model.name.clone(), template }
        }
    };
    decoder.set_dropout(recipe.attention_dropout as f32, recipe.resid_pdrop as f32);

    events.phase(Phase::Tokenizing);
    let Samples { mut train, validation, asked } = samples(recipe, &encoder, &labels, rows, events)?;
    for samples in [&train.all, &validation.all] {
        check_lengths(decoder.config(), samples)?;
    }
    let mut sampler = sampler(recipe, &train);
    let own_samples = train.all.len();
    if !among.earlier.is_empty() {
        let pack_len = recipe.packing.then_some(recipe.cutoff_len);
        let replayed = Sampler::new(among.earlier, recipe.per_device_train_batch_size, pack_len, recipe.seed ^ 0x5245);
        sampler = sampler.beside(replayed, own_samples, recipe.replay_ratio);
        train.all.extend_from_slice(among.earlier);
    }
    let (held_out_tasks, train, validation) = (validation.ranges(), train.all, validation.all);
    // Before weights of a checkpoint are put in place.
    let own = trainable::weights(recipe, decoder.config())
        .map_err(|problems| Failure { reason: FailureReason::RecipeInvalid, problems })?;
    let mut regularizers = Regularizers::new(recipe, &decoder, Trained::Named(&own));
    if let (Some(path), Some(lambda)) = (among.fisher, recipe.ewc_lambda) {
        regularizers.ewc = Some(Ewc::open(path, lambda as f32).map_err(model_invalid)?);
    }
    let accuracies = |decoder: &Decoder| -> Vec<f64> {
        among.watched.iter().map(|samples| loss_on(decoder, samples, true).token_accuracy).collect()
    };
    let baseline = run_dir.join(BASELINE);
    if among.is_first && !among.watched.is_empty() && !baseline.exists() {
        events.phase(Phase::Evaluating);
        fs::create_dir_all(run_dir).map_err(|error| disk_full(cannot_write(run_dir, &error)))?;
        write_scores(&baseline, &accuracies(&decoder)).map_err(disk_full)?;
    }
    let fingerprint = fingerprint(source, &train);
    let checkpoints = Checkpoints::new(run_dir, recipe.save_total_limit);
    let mut settings = settings(recipe, &decoder, &trained, &sampler, regularizers)?;
    let objective = match teacher {
        None => objectives::new(recipe),
        Some(teacher) => teacher.objective(recipe, decoder.config().vocab_size, [&train, &validation], &device)?,
    };
    // Before anything is restored: what is compared with is the model that the first step began with.
    let objective = Lwf::beside(objective, recipe, &decoder);
    if objective.preference().is_some_and(|preference| preference.judge.needs_reference()) {
        events.phase(Phase::Evaluating);
    }
    let longest = decoder.config().longest_sequence().map_or(recipe.cutoff_len, |limit| limit.min(recipe.cutoff_len));
    let background =
        |samples: &[Sample], seen: &[usize]| Background::new(objective.preference(), &decoder, samples, seen, longest);
    let seen = first_samples(&sampler, settings.schedule.total_steps * recipe.batches_per_step() as u64);
    let held_out = background(&validation, &(0..validation.len()).collect::<Vec<_>>());
    let background = background(&train, &seen);
    let restored = match resume {
        true => checkpoints
            .restore_newest(&mut decoder, &checkpoint, &trained, &fingerprint, |problem| events.warn(problem))
            .map_err(disk_or_model)?,
        false => None,
    };
    // Its pages need not stay in memory; a run that goes back reads it again.
    drop(checkpoint);
    let reopen = || Checkpoint::open(&model.path).map_err(model_invalid);
    every_pattern_is_found(&settings, &decoder)?;
    let mut optimizer = optim::new(recipe);
    let sizes = decoder.trained_sizes(settings.trainable.all());
    let handed = among.optimizer.map(|folder| Handed::open(folder, &sizes)).transpose().map_err(model_invalid)?;
    if let Some(handed) = &handed {
        settings.groups = settings.groups.with_earlier_steps(handed.steps.clone());
    }
    let state = match restored {
        None => {
            if let Some(handed) = &handed {
                optimizer.restore(handed.memory().map_err(model_invalid)?);
                events.emit(goes_on(handed.steps.len(), sizes.len()));
            }
            new_state(recipe, fingerprint.clone())
        }
        Some((state, memory)) => {
            optimizer.restore(memory);
            state
        }
    };
    sampler.restore(&state.sampler);
    let mut weighting = tasks::new(recipe);
    if let Some(weighting) = &mut weighting {
        weighting.restore(&state.task_weights());
    }
    let objective = &*objective;
    let task_names = recipe.tasks.iter().map(|task| task.name.clone()).collect();
    let mut trainer = Trainer {
        decoder,
        optimizer,
        state,
        samples: &train,
        objective,
        background,
        sampler,
        weighting,
        task_names,
        task_losses: None,
        settings,
    };

    let total_steps = trainer.settings.schedule.total_steps;
    let row_samples = recipe.stage.samples_of_row();
    events.emit(Event::Started {
        first_step: trainer.state.step,
        total_steps,
        epochs: total_steps as f64 * recipe.batches_per_step() as f64 / trainer.sampler.batches_per_epoch() as f64,
        train_rows: (train.len() / row_samples) as u64,
        validation_rows: (validation.len() / row_samples) as u64,
        trainable_parameters: trained_numbers(&trainer),
        total_parameters: trainer.decoder.parameters(),
        device: device_name.to_string(),
    });
    events.phase(Phase::Training);
    let save = |trainer: &Trainer<'_>, events: &mut dyn EventSink| {
        let (decoder, memory, state) = (&trainer.decoder, trainer.optimizer.state(), &trainer.state);
        let path = checkpoints.save(decoder, &trained, &memory, state).map_err(disk_full)?;
        events.emit(Event::Checkpoint { step: state.step, path });
        Ok::<_, Failure>(())
    };
    let save_result = |trainer: &Trainer<'_>| {
        // A whole model is complete with its tokenizer; an adapter goes with the base model's.
        save_final(run_dir, &trainer.decoder, &trained, |folder| match trained {
            TrainedModel::Adapter { .. } => Ok(()),
            TrainedModel::Weights { .. } => encoder.save(folder),
        })
        .map_err(disk_full)
    };
    let finish = |trainer: &mut Trainer<'_>| {
        trainer.exchange_means();
        save_result(trainer)
    };
    let of_tasks = HeldOut { tasks: &recipe.tasks, ranges: &held_out_tasks, asked: &asked, encoder: &encoder };
    let best_dir = run_dir.join("best");
    let (mut validation_loss, mut rewards) = (None, None);
    while !trainer.done() {
        if stop.requested() {
            save(&trainer, events)?;
            let folder = finish(&mut trainer)?;
            return Ok(outcome(&trainer.state, folder, None, rewards, true));
        }
        if let Some(stage) = trainer.settings.trainable.begins(trainer.state.step) {
            events.emit(unfrozen(stage, trainer.state.step));
        }
        match trainer.step() {
            Stepped::Done(event) => {
                if let Event::Step { rewards: of_step, .. } = &event {
                    rewards = *of_step;
                }
                events.emit(event);
                trainer.task_losses.take().into_iter().for_each(|of_tasks| events.emit(of_tasks));
            }
            Stepped::Skipped(event) => {
                events.emit(event);
                continue;
            }
            Stepped::Diverged { problem, good } => {
                checkpoints.forget_after(good).map_err(disk_full)?;
                let warn = |problem: &Problem| events.warn(problem);
                let restored =
                    checkpoints.restore_newest(&mut trainer.decoder, &reopen()?, &trained, &fingerprint, warn);
                let kept = match restored.map_err(disk_or_model)? {
                    None => None,
                    Some((state, memory)) => {
                        trainer.optimizer.restore(memory);
                        trainer.state = state;
                        Some((trainer.state.step, finish(&mut trainer)?))
                    }
                };
                return Err(rolled_back(*problem, kept));
            }
        }
        let step = trainer.state.step;
        let due = recipe.eval_steps().is_some_and(|every| step.is_multiple_of(every) || trainer.done());
        if due && !validation.is_empty() {
            trainer.exchange_means();
            let found = validate(&trainer.decoder, &validation, 0..validation.len(), objective, &held_out);
            let fared = of_tasks.validate(&trainer.decoder, &validation, objective, &held_out);
            let fared = fared.map_err(|problem| problem.because(FailureReason::DataInvalid))?;
            if !fared.is_empty() {
                events.emit(of_tasks.event(step, &fared));
            }
            let value = of_tasks.best(recipe, &found, &fared);
            let Validation { loss, perplexity, token_accuracy, rewards: of_validation } = found;
            (validation_loss, rewards) = (Some(loss), of_validation);
            if trainer.validated(value, loss) && recipe.load_best_model_at_end {
                fs::create_dir_all(&best_dir).map_err(|error| disk_full(cannot_write(&best_dir, &error)))?;
                save_final(&best_dir, &trainer.decoder, &trained, |_| Ok(())).map_err(disk_full)?;
            }
            trainer.exchange_means();
            events.emit(Event::Evaluation { step, loss, perplexity, token_accuracy, rewards });
        }
        // After the validation, on which the next learning rate may depend.
        if step.is_multiple_of(recipe.save_steps) || trainer.done() {
            save(&trainer, events)?;
        }
    }
    events.phase(Phase::Saving);
    if let Some(best) = trainer.state.best {
        events.emit(best_validation(recipe, best, trainer.stops_early()));
    }
    let folder = match trainer.state.best.filter(|_| recipe.load_best_model_at_end) {
        None => finish(&mut trainer)?,
        Some(best) => {
            apply_tuned(&mut trainer.decoder, &reopen()?, &best_dir.join(trained.folder())).map_err(model_invalid)?;
            validation_loss = Some(best.loss);
            // Means of weights were in place when it was saved.
            save_result(&trainer)?
        }
    };
    if !among.watched.is_empty() {
        write_scores(&run_dir.join(SCORES), &accuracies(&trainer.decoder)).map_err(disk_full)?;
    }
    if among.remembered {
        let every = own_samples.div_ceil(recipe.fisher_samples).max(1);
        let samples: Vec<&Sample> = train[..own_samples].iter().step_by(every).collect();
        let before = among.fisher.map(|path| (path, recipe.ewc_gamma as f32));
        let (trained, place) = (trainer.settings.trainable.all(), run_dir.join(FISHER));
        let pass = Pass { trained, checkpointing: recipe.gradient_checkpointing, loss_scale: trainer.state.loss_scale };
        remember(&mut trainer.decoder, pass, &samples, before, &place).map_err(disk_full)?;
    }
    if among.hands_on {
        let groups = &trainer.settings.groups;
        let tensor = |(name, numbers): (String, usize)| {
            let tensor = handed::Tensor { numbers: numbers as u64, steps: groups.own_steps(&name, trainer.state.step) };
            (name, tensor)
        };
        handed::hand_on(run_dir, &sizes.into_iter().map(tensor).collect(), &trainer.optimizer.state())
            .map_err(disk_full)?;
    }
    Ok(outcome(&trainer.state, folder, validation_loss, rewards, false))
}

/// A stage's steps and its samples.
pub(crate) struct Planned {
    pub(crate) steps: u64,
    pub(crate) train: Vec<Sample>,
    pub(crate) validation: Vec<Sample>,
}

/// All data of all stages is read and tokenised, and what is wrong with it is found.
pub(crate) fn plan(stages: &[&Recipe], model: &ModelFiles) -> Result<Vec<Planned>, Failure> {
    let checkpoint = Checkpoint::open(&model.path).map_err(model_invalid)?;
    let config = families::decoder_config(&checkpoint).map_err(model_invalid)?;
    let plan_of = |recipe: &&Recipe| {
        let (encoder, _) = open_reader(recipe, &checkpoint)?;
        Teacher::find(recipe, model, &encoder)?;
        // What is left out is said when its stage begins.
        let rows = rows_of_tasks(recipe)?;
        // In which order, does not matter for what is looked at here.
        let labels = Labels::of(rows.iter().flat_map(|(train, _)| train));
        let Samples { train, validation, .. } = samples(recipe, &encoder, &labels, rows, &mut Vec::new())?;
        for samples in [&train.all, &validation.all] {
            check_lengths(&config, samples)?;
        }
        let steps = recipe.total_steps(steps_per_epoch(recipe, &sampler(recipe, &train)));
        Ok(Planned { steps, train: train.all, validation: validation.all })
    };
    stages.iter().map(plan_of).collect()
}

fn steps_per_epoch(recipe: &Recipe, sampler: &MixedSampler) -> u64 {
    sampler.batches_per_epoch().div_ceil(recipe.batches_per_step()) as u64
}

/// Puts the recipe's adapter on the decoder: a fresh one, or the one to go on with.
fn adapt(
    recipe: &Recipe,
    model: &str,
    checkpoint: &Checkpoint,
    decoder: &mut Decoder,
    events: &mut dyn EventSink,
) -> Result<LoraConfig, Failure> {
    let invalid = |problem: Problem| problem.because(FailureReason::RecipeInvalid);
    let Some(folder) = recipe.adapter_path() else {
        let config = recipe.lora_config();
        attach_lora(decoder, &config, recipe.seed).map_err(invalid)?;
        recipe.lora_start().map_or(Ok(()), |start| start.apply(decoder, checkpoint)).map_err(invalid)?;
        return Ok(config);
    };
    let last = |name: &str| name.rsplit(['/', '\\']).next().unwrap_or_default().to_lowercase();
    if let Some(base) = base_model(&folder).filter(|base| last(base) != last(model)) {
        let problem = Problem::warning(
            ProblemCode::InvalidValue,
            "the adapter says that it was trained on another model",
            "该适配器注明它是在另一个模型上训练的",
        );
        events.warn(&problem.key("adapter_name_or_path").found(base).expected(model));
    }
    let config = load_peft(decoder, &folder).map_err(invalid)?;
    let Some(beside) = recipe.pair_beside() else { return Ok(config) };
    attach_beside(decoder, &beside, recipe.seed).map_err(invalid)?;
    Ok(beside)
}

/// The order and grouping of the samples.
pub(crate) fn sampler(recipe: &Recipe, samples: &TaskSamples) -> MixedSampler {
    let row_samples = recipe.stage.samples_of_row();
    let pack_len = recipe.packing.then_some(recipe.cutoff_len * row_samples);
    let ranges = samples.ranges();
    let of_task = |(task, range): (u64, &Range<usize>)| {
        let samples = &samples.all[range.clone()];
        Sampler::of_rows(samples, row_samples, recipe.per_device_train_batch_size, pack_len, recipe.seed ^ (task << 32))
    };
    let rows: Vec<usize> = ranges.iter().map(|range| range.len() / row_samples).collect();
    let starts = ranges.iter().map(|range| range.start).collect();
    MixedSampler::new((0..).zip(&ranges).map(of_task).collect(), starts, recipe.mixing(&rows), recipe.seed)
}

/// Those of a run's first batches, each once.
fn first_samples(sampler: &MixedSampler, batches: u64) -> Vec<usize> {
    let mut sampler = sampler.clone();
    let batches = batches.min(sampler.batches_per_epoch() as u64);
    let mut seen: Vec<usize> = (0..batches).flat_map(|_| sampler.next_batch().1).collect();
    if sampler.tasks() > 1 {
        // A small task may have come round more than once.
        seen.sort_unstable();
        seen.dedup();
    }
    seen
}

/// Those of all tasks, one task after the other.
#[derive(Default)]
pub(crate) struct TaskSamples {
    pub(crate) all: Vec<Sample>,
    /// Where each task ends.
    ends: Vec<usize>,
}

impl TaskSamples {
    /// Of one task.
    pub(crate) fn one(all: Vec<Sample>) -> Self {
        Self { ends: vec![all.len()], all }
    }

    fn push(&mut self, samples: Vec<Sample>) {
        self.all.extend(samples);
        self.ends.push(self.all.len());
    }

    fn ranges(&self) -> Vec<Range<usize>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| start..end).collect()
    }
}

struct Samples {
    train: TaskSamples,
    validation: TaskSamples,
    /// Held-out rows of each task whose answers are compared; empty of the others.
    asked: Vec<Vec<Conversation>>,
}

/// The rows to train on and those held out.
type Rows = (Vec<Conversation>, Vec<Conversation>);

fn rows_of_tasks(recipe: &Recipe) -> Result<Vec<Rows>, Failure> {
    recipe.of_tasks().iter().map(read_rows).collect()
}

fn samples(
    recipe: &Recipe,
    encoder: &Encoder,
    labels: &Labels,
    rows: Vec<Rows>,
    events: &mut dyn EventSink,
) -> Result<Samples, Failure> {
    let mut samples = Samples { train: TaskSamples::default(), validation: TaskSamples::default(), asked: Vec::new() };
    for ((index, task), (train, mut validation)) in recipe.of_tasks().into_iter().enumerate().zip(rows) {
        samples.train.push(encode_rows(encoder, &task, labels, &train, events)?);
        samples.validation.push(encode_rows(encoder, &task, labels, &validation, events)?);
        validation.retain(|row| recipe.answers_task(index) && row.judgement != Judgement::Good(false));
        samples.asked.push(validation);
    }
    if let Some(problem) = tasks::nothing_to_judge_by(recipe, &samples.validation.ranges()) {
        return Err(problem.because(FailureReason::DataInvalid));
    }
    Ok(samples)
}

fn settings(
    recipe: &Recipe,
    decoder: &Decoder,
    trained: &TrainedModel,
    sampler: &MixedSampler,
    regularizers: Regularizers,
) -> Result<Settings, Failure> {
    let total_steps = recipe.total_steps(steps_per_epoch(recipe, sampler));
    let trainable = Trainable::new(recipe, decoder, trained.parameters(), total_steps)
        .map_err(|problems| Failure { reason: FailureReason::RecipeInvalid, problems })?;
    Ok(Settings {
        regularizers,
        early_stopping: recipe.early_stopping(),
        groups: trainable.joining(recipe.groups(), recipe, decoder),
        trainable,
        checkpointing: recipe.gradient_checkpointing,
        schedule: recipe.schedule(total_steps),
        keeps_means: recipe.ema_decay.is_some(),
        max_grad_norm: recipe.max_grad_norm,
        max_bad_steps: recipe.max_bad_steps,
        loss_scale_window: recipe.loss_scale_window(),
        accumulation: recipe.gradient_accumulation_steps,
        seed: recipe.seed,
    })
}

/// A learning rate for no parameter at all is a pattern with a mistake in it.
fn every_pattern_is_found(settings: &Settings, decoder: &Decoder) -> Result<(), Failure> {
    let sizes = decoder.trained_sizes(settings.trainable.all());
    let names: Vec<&str> = sizes.iter().map(|(name, _)| name.as_str()).collect();
    let problem = |pattern: &str| {
        Problem::error(
            ProblemCode::InvalidValue,
            "no trained parameter has such a name",
            "没有任何被训练的参数叫这样的名字",
        )
        .key(format!("learning_rates.{pattern}"))
        .expected(format!("a part of a name such as {}", names.last().copied().unwrap_or_default()))
        .fix("correct the pattern, or remove it", "请修改这个模式，或将其删除")
    };
    let problems: Vec<Problem> = settings.groups.unused(&names).into_iter().map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure { reason: FailureReason::RecipeInvalid, problems }) }
}

fn trained_numbers(trainer: &Trainer<'_>) -> u64 {
    trainer.decoder.trained_sizes(trainer.settings.trainable.all()).iter().map(|(_, len)| *len as u64).sum()
}

fn new_state(recipe: &Recipe, fingerprint: String) -> RunState {
    RunState {
        step: 0,
        sampler: MixedState::default(),
        first_loss: 0.0,
        last_loss: 0.0,
        tokens: 0,
        seconds: 0.0,
        fingerprint,
        bad_steps: 0,
        loss_scale: LossScale::new(recipe),
        best: None,
        plateau: None,
        task_weights: Vec::new(),
    }
}

/// Changes with the recipe's text and with every token of the data.
fn fingerprint(source: &RecipeSource, samples: &[Sample]) -> String {
    let mut hash = Sha256::new();
    hash.update(source.text.as_bytes());
    for sample in samples {
        hash.update((sample.ids.len() as u64).to_le_bytes());
        sample.source.iter().chain(&sample.ids).for_each(|id| hash.update(id.to_le_bytes()));
        if sample.rejected {
            hash.update([1]);
        }
        if let Some(class) = &sample.class {
            hash.update(class.label.to_le_bytes());
            class.types.iter().for_each(|kind| hash.update(kind.to_le_bytes()));
            class.image.iter().for_each(|image| hash.update(image.bytes()));
        }
    }
    hex(&hash.finalize())
}

fn outcome(
    state: &RunState,
    adapter: PathBuf,
    validation_loss: Option<f64>,
    rewards: Option<Rewards>,
    stopped: bool,
) -> Outcome {
    let result = TrainResult {
        steps: state.step,
        first_loss: state.first_loss,
        last_loss: state.last_loss,
        validation_loss,
        tokens_per_second: if state.seconds > 0.0 { state.tokens as f64 / state.seconds } else { 0.0 },
        peak_memory_bytes: memory::peak_bytes(),
        seconds: state.seconds,
        adapter,
        rewards,
    };
    Outcome::Trained { stopped, result }
}

fn best_validation(recipe: &Recipe, best: Best, early: bool) -> Event {
    let Best { step, value, waited, .. } = best;
    let metric = recipe.metric_for_best_model.name();
    let (en, zh) = match early {
        true => (
            format!("stopped early, after {waited} validations that were not better; "),
            format!("已提前停止：连续 {waited} 次验证没有变好；"),
        ),
        false => (String::new(), String::new()),
    };
    let text = Text::new(
        format!("{en}the best {metric} is {value:.4}, of step {step}"),
        format!("{zh}最好的 {metric} 为 {value:.4}，在第 {step} 步"),
    );
    Event::Log { level: LogLevel::Info, text }
}

fn unfrozen(stage: &Stage, step: u64) -> Event {
    let (group, tensors) = (stage.group, stage.names.len());
    let text = Text::new(
        format!("step {step}: unfreezing \"{group}\"; {tensors} tensors are trained from here on"),
        format!("第 {step} 步：解冻“{group}”；此后训练 {tensors} 个张量"),
    );
    Event::Log { level: LogLevel::Info, text }
}

fn goes_on(kept: usize, trained: usize) -> Event {
    let text = Text::new(
        format!("the optimiser goes on with what it remembers of {kept} of {trained} tensors"),
        format!("优化器沿用 {kept}/{trained} 个张量的状态"),
    );
    Event::Log { level: LogLevel::Info, text }
}

/// Says what is left of a run that diverged: the step and the folder of its last good weights.
fn rolled_back(problem: Problem, kept: Option<(u64, PathBuf)>) -> Failure {
    let (en, zh) = match kept {
        None => ("no checkpoint was saved before".to_owned(), "此前没有保存检查点".to_owned()),
        Some((step, folder)) => {
            let folder = folder.display();
            (format!("{folder} has the weights of step {step}"), format!("{folder} 中是第 {step} 步的权重"))
        }
    };
    let problem = problem.fix(
        format!("lower learning_rate or lengthen the warm-up, and look at these rows; {en}"),
        format!("请降低 learning_rate 或延长预热，并检查这些数据行；{zh}"),
    );
    problem.because(FailureReason::LossDiverged)
}

/// The recipe names a device that cannot be used.
pub(crate) fn no_device(problem: Problem, source: &RecipeSource) -> Failure {
    problem.file(&source.file).because(FailureReason::RecipeInvalid)
}

fn model_invalid(problem: Problem) -> Failure {
    problem.because(FailureReason::ModelInvalid)
}

fn disk_full(problem: Problem) -> Failure {
    problem.because(FailureReason::DiskFull)
}

/// A checkpoint that does not fit, or a disk that failed.
fn disk_or_model(problem: Problem) -> Failure {
    match problem.code {
        ProblemCode::DiskFull => disk_full(problem),
        _ => model_invalid(problem),
    }
}
