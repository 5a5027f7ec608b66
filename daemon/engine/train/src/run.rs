//! A training run from recipe to adapter.

use std::path::Path;

use justtrain_data::{Encoder, Sample, Sampler, SamplerState};
use justtrain_model::adapters::{LoraConfig, LoraTargets, attach_lora};
use justtrain_model::parameters::Parameters;
use justtrain_model::{Decoder, device};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{
    Event, Failure, FailureReason, ModelFiles, Outcome, Phase, Problem, ProblemCode, RecipeSource, Rewards, TrainResult,
};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoints, RunState, TrainedModel, hex, save_final};
use crate::evaluate::{Validation, validate};
use crate::objectives::{self, Background};
use crate::optim;
use crate::prepare::{check_lengths, encode_rows, open_encoder, read_rows};
use crate::recipe::{FinetuningType, LoraTarget, Recipe, Stage};
use crate::trainer::{Settings, Trainer};
use crate::{EventSink, StopToken, memory};

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
    let (device_name, device) = device::open(recipe.device()).map_err(|problem| no_device(problem, source))?;

    events.phase(Phase::LoadingModel);
    let checkpoint = Checkpoint::open(&model.path).map_err(model_invalid)?;
    let template = recipe.chat_template().map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    let (encoder, warning) = open_encoder(&checkpoint, template.clone()).map_err(model_invalid)?;
    warning.iter().for_each(|warning| events.warn(warning));
    let mut decoder = Decoder::load(&checkpoint, &device, recipe.weight_formats()).map_err(model_invalid)?;
    let trained = match recipe.finetuning_type {
        FinetuningType::Full => TrainedModel::Weights { config: checkpoint.config().clone(), template },
        FinetuningType::Lora => {
            let config = lora_config(&recipe);
            attach_lora(&mut decoder, &config, recipe.seed)
                .map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
            TrainedModel::Adapter { config, base_model: model.name.clone(), template }
        }
    };
    if recipe.stage == Stage::Rm && decoder.score().is_none() {
        decoder.attach_score(recipe.seed);
    }
    drop(checkpoint);

    events.phase(Phase::Tokenizing);
    let (train, validation) = samples(&recipe, &encoder, events)?;
    for samples in [&train, &validation] {
        check_lengths(decoder.config(), samples)?;
    }
    let fingerprint = fingerprint(source, &train);
    let checkpoints = Checkpoints::new(run_dir, recipe.save_total_limit);
    let mut sampler = sampler(&recipe, &train);
    let settings = settings(&recipe, &trained, &sampler);
    let objective = objectives::new(&recipe);
    // Before anything is restored: what is compared with is the model that the first step began with.
    if objective.preference().is_some_and(|preference| preference.judge.needs_reference()) {
        events.phase(Phase::Evaluating);
    }
    let longest = decoder.config().longest_sequence().map_or(recipe.cutoff_len, |limit| limit.min(recipe.cutoff_len));
    let background =
        |samples: &[Sample], seen: &[usize]| Background::new(objective.preference(), &decoder, samples, seen, longest);
    let seen = first_samples(&sampler, settings.schedule.total_steps * settings.accumulation as u64);
    let held_out = background(&validation, &(0..validation.len()).collect::<Vec<_>>());
    let background = background(&train, &seen);
    let restored = match resume {
        true => checkpoints
            .restore_newest(&mut decoder, &trained, &fingerprint, |problem| events.warn(problem))
            .map_err(disk_or_model)?,
        false => None,
    };
    every_pattern_is_found(&settings, &decoder)?;
    let mut optimizer = optim::new(&recipe);
    let state = match restored {
        None => new_state(fingerprint),
        Some((state, memory)) => {
            optimizer.restore(memory);
            state
        }
    };
    sampler.restore(state.sampler);
    let objective = &*objective;
    let mut trainer = Trainer { decoder, optimizer, state, samples: &train, objective, background, sampler, settings };

    let total_steps = trainer.settings.schedule.total_steps;
    let row_samples = recipe.stage.samples_of_row();
    events.emit(Event::Started {
        first_step: trainer.state.step,
        total_steps,
        epochs: total_steps as f64 * recipe.gradient_accumulation_steps as f64
            / trainer.sampler.batches_per_epoch() as f64,
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
    let finish = |trainer: &mut Trainer<'_>| {
        trainer.exchange_means();
        // A whole model is complete with its tokenizer; an adapter goes with the base model's.
        save_final(run_dir, &trainer.decoder, &trained, |folder| match trained {
            TrainedModel::Adapter { .. } => Ok(()),
            TrainedModel::Weights { .. } => encoder.tokenizer.save(folder, &encoder.template),
        })
        .map_err(disk_full)
    };
    let (mut validation_loss, mut rewards) = (None, None);
    while !trainer.done() {
        if stop.requested() {
            save(&trainer, events)?;
            let folder = finish(&mut trainer)?;
            return Ok(outcome(&trainer.state, folder, None, rewards, true));
        }
        let event = trainer.step()?;
        if let Event::Step { rewards: of_step, .. } = &event {
            rewards = *of_step;
        }
        events.emit(event);
        let step = trainer.state.step;
        let due = recipe.eval_steps().is_some_and(|every| step.is_multiple_of(every) || trainer.done());
        if due && !validation.is_empty() {
            trainer.exchange_means();
            let found = validate(&trainer.decoder, &validation, objective, &held_out);
            trainer.exchange_means();
            validation_loss = Some(found.loss);
            trainer.validated(found.loss);
            let Validation { loss, perplexity, token_accuracy, rewards: found } = found;
            rewards = found;
            events.emit(Event::Evaluation { step, loss, perplexity, token_accuracy, rewards });
        }
        // After the validation, on which the next learning rate may depend.
        if step.is_multiple_of(recipe.save_steps) || trainer.done() {
            save(&trainer, events)?;
        }
    }
    events.phase(Phase::Saving);
    let folder = finish(&mut trainer)?;
    Ok(outcome(&trainer.state, folder, validation_loss, rewards, false))
}

/// The order and grouping of the samples.
pub(crate) fn sampler(recipe: &Recipe, samples: &[Sample]) -> Sampler {
    let row_samples = recipe.stage.samples_of_row();
    let pack_len = recipe.packing.then_some(recipe.cutoff_len * row_samples);
    Sampler::of_rows(samples, row_samples, recipe.per_device_train_batch_size, pack_len, recipe.seed)
}

/// Those of a run's first batches, each once.
fn first_samples(sampler: &Sampler, batches: u64) -> Vec<usize> {
    let mut sampler = sampler.clone();
    let batches = batches.min(sampler.batches_per_epoch() as u64);
    (0..batches).flat_map(|_| sampler.next_batch()).collect()
}

fn samples(
    recipe: &Recipe,
    encoder: &Encoder,
    events: &mut dyn EventSink,
) -> Result<(Vec<Sample>, Vec<Sample>), Failure> {
    let (train, validation) = read_rows(recipe)?;
    Ok((encode_rows(encoder, recipe, &train, events)?, encode_rows(encoder, recipe, &validation, events)?))
}

fn lora_config(recipe: &Recipe) -> LoraConfig {
    LoraConfig {
        rank: recipe.lora_rank,
        alpha: recipe.lora_alpha() as f32,
        dropout: recipe.lora_dropout as f32,
        targets: match recipe.lora_target() {
            LoraTarget::All => LoraTargets::All,
            LoraTarget::Named(names) => LoraTargets::Named(names),
        },
    }
}

fn settings(recipe: &Recipe, trained: &TrainedModel, sampler: &Sampler) -> Settings {
    let steps_per_epoch = sampler.batches_per_epoch().div_ceil(recipe.gradient_accumulation_steps) as u64;
    let total_steps = recipe.total_steps(steps_per_epoch);
    Settings {
        trained: trained.parameters(),
        checkpointing: recipe.gradient_checkpointing,
        schedule: recipe.schedule(total_steps),
        groups: recipe.groups(),
        keeps_means: recipe.ema_decay.is_some(),
        max_grad_norm: recipe.max_grad_norm,
        accumulation: recipe.gradient_accumulation_steps,
        seed: recipe.seed,
    }
}

/// A learning rate for no parameter at all is a pattern with a mistake in it.
fn every_pattern_is_found(settings: &Settings, decoder: &Decoder) -> Result<(), Failure> {
    let sizes = decoder.trained_sizes(settings.trained);
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
    trainer.decoder.trained_sizes(trainer.settings.trained).iter().map(|(_, len)| *len as u64).sum()
}

fn new_state(fingerprint: String) -> RunState {
    RunState {
        step: 0,
        sampler: SamplerState::default(),
        first_loss: 0.0,
        last_loss: 0.0,
        tokens: 0,
        seconds: 0.0,
        fingerprint,
        plateau: None,
    }
}

/// Changes with the recipe's text and with every token of the data.
fn fingerprint(source: &RecipeSource, samples: &[Sample]) -> String {
    let mut hash = Sha256::new();
    hash.update(source.text.as_bytes());
    for sample in samples {
        hash.update((sample.ids.len() as u64).to_le_bytes());
        sample.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        if sample.rejected {
            hash.update([1]);
        }
    }
    hex(&hash.finalize())
}

fn outcome(
    state: &RunState,
    adapter: std::path::PathBuf,
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
