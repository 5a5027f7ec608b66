//! How good a model is on held-out rows: loss, perplexity, token accuracy, exact match of the answer.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::activation;
use justtrain_data::tokenizer::TextStream;
use justtrain_data::{Batch, Conversation, Encoder, Judgement, Labels, Message, Sample, read_conversations};
use justtrain_kernels::{Targets, score_targets};
use justtrain_model::generate::generate;
use justtrain_model::{Decoder, Mode, apply_tuned, device, largest, tuned_labels};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{
    AccuracyReport, DataFile, EvaluateOptions, EvaluationReport, Event, ExampleComparison, Failure, FailureReason,
    GenerateOptions, ModelFiles, Phase, Problem, ProblemCode, RecipeSource, Rewards,
};

use crate::EventSink;
use crate::classes::{attach_head, labels};
use crate::objectives::{self, Background, Objective, RewardSums, Scored, rewards_of};
use crate::prepare::{check_lengths, encode_rows, fits, input_of, open_reader, read_rows};
use crate::recipe::{Recipe, Stage};
use crate::run::no_device;

/// Most tokens of one evaluation batch.
pub(crate) const BATCH_TOKENS: usize = 2048;
/// Answers generated at a time.
const ANSWERS_AT_ONCE: usize = 16;
/// Rows shown with both answers.
const EXAMPLES: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TokenScores {
    /// Mean over target tokens (nats).
    pub(crate) loss: f64,
    pub(crate) token_accuracy: f64,
}

/// Base model beside tuned model on the same rows: `data`'s, or the recipe's own held-out ones.
pub fn evaluate(
    source: &RecipeSource,
    model: &ModelFiles,
    data: Option<&DataFile>,
    options: &EvaluateOptions,
    events: &mut dyn EventSink,
) -> Result<EvaluationReport, Failure> {
    let invalid = |problem: Problem| problem.because(FailureReason::ModelInvalid);
    let recipe =
        Recipe::parse(source).map_err(|problems| Failure { reason: FailureReason::RecipeInvalid, problems })?;
    let (_, device) = device::open(recipe.device()).map_err(|problem| no_device(problem, source))?;
    events.phase(Phase::LoadingModel);
    let checkpoint = Checkpoint::open(&model.path).map_err(invalid)?;
    let (encoder, _) = open_reader(&recipe, &checkpoint)?;
    let mut decoder = Decoder::load(&checkpoint, &device, recipe.weight_formats()).map_err(invalid)?;
    let mut rows = held_out_rows(&recipe, data)?;
    if options.max_samples > 0 {
        rows.truncate(options.max_samples as usize);
    }
    let labels = match (recipe.stage, model.adapter.as_deref()) {
        // Those that it has learnt, whatever the data is that it learnt them from.
        (Stage::Cls, Some(tuned)) => Labels::new(tuned_labels(tuned).map_err(invalid)?.unwrap_or_default()),
        (Stage::Cls, None) => labels(&recipe, &decoder, None, &read_rows(&recipe)?.0)?,
        _ => Labels::default(),
    };
    attach_head(&recipe, &labels, &mut decoder)?;
    let judged = encode_rows(&encoder, &recipe, &labels, &rows, events)?;
    check_lengths(decoder.config(), &judged)?;
    let objective = objectives::new(&recipe);
    let all: Vec<usize> = (0..judged.len()).collect();
    let preference = objective.preference().filter(|_| rows.iter().all(|row| fits(recipe.stage, row)));
    let background = Background::new(preference, &decoder, &judged, &all, recipe.cutoff_len);
    // What a model should say is what was chosen.
    let samples: Vec<Sample> = judged.iter().filter(|sample| !sample.rejected).cloned().collect();
    rows.retain(|row| row.judgement != Judgement::Good(false));
    if samples.is_empty() {
        return Err(nothing_held_out().because(FailureReason::DataInvalid));
    }

    events.phase(Phase::Evaluating);
    // A text is read on, not asked for.
    let asked = rows.iter().all(|row| row.judgement != Judgement::Plain);
    let passes = 1 + u64::from(model.adapter.is_some());
    let total = passes * rows.len() as u64;
    let report = |decoder: &Decoder, adapter: bool, done: u64, events: &mut dyn EventSink| {
        let (scores, answers) = match decoder.classifier().filter(|_| recipe.stage == Stage::Cls) {
            Some(classifier) => {
                let rows = classes_of(decoder, &samples, Mode { adapter, dropout_seed: None });
                let answers = rows.iter().map(|row| classifier.label_of(row).to_owned()).collect();
                (mean_of(&class_scores(&samples, &rows)), answers)
            }
            None => {
                let scores = loss_on(decoder, &samples, adapter);
                let asked: &[Conversation] = if asked { &rows } else { &[] };
                let answers =
                    answers(&encoder, decoder, asked, options.max_new_tokens, EXAMPLES, adapter, |answered| {
                        events.emit(Event::Progress { done: done + answered, total });
                    });
                (scores, answers.map_err(|problem| problem.because(FailureReason::DataInvalid))?)
            }
        };
        let report = AccuracyReport {
            loss: scores.loss,
            perplexity: scores.loss.exp(),
            token_accuracy: scores.token_accuracy,
            exact_match: share_of_matches(&answers, &rows),
            rewards: preference
                .filter(|preference| adapter && (decoder.classifier().is_some() || !preference.judge.has_head()))
                .and_then(|preference| validate(decoder, &judged, 0..judged.len(), preference, &background).rewards),
        };
        Ok::<_, Failure>((report, answers))
    };
    let (base, base_answers) = report(&decoder, false, 0, events)?;
    let tuned = match &model.adapter {
        Some(folder) => {
            apply_tuned(&mut decoder, &checkpoint, folder).map_err(invalid)?;
            Some(report(&decoder, true, rows.len() as u64, events)?)
        }
        None => None,
    };
    let examples =
        rows.iter().zip(&base_answers).enumerate().take(EXAMPLES).map(|(index, (row, base))| ExampleComparison {
            prompt: question(row),
            reference: reference(row),
            base: base.clone(),
            tuned: tuned.as_ref().map(|(_, answers)| answers[index].clone()),
        });
    Ok(EvaluationReport {
        rows: rows.len() as u64,
        target_tokens: samples.iter().map(|sample| sample.targets() as u64).sum(),
        base,
        examples: examples.collect(),
        tuned: tuned.map(|(report, _)| report),
    })
}

fn held_out_rows(recipe: &Recipe, data: Option<&DataFile>) -> Result<Vec<Conversation>, Failure> {
    let rows = match data {
        // Each task has held out its own.
        None => {
            let mut rows = Vec::new();
            for task in recipe.of_tasks() {
                rows.extend(read_rows(&task)?.1);
            }
            rows
        }
        Some(data) => {
            let loaded = read_conversations(data).map_err(|problem| problem.because(FailureReason::DataInvalid))?;
            if !loaded.problems.is_empty() {
                return Err(Failure { reason: FailureReason::DataInvalid, problems: loaded.problems });
            }
            loaded.conversations
        }
    };
    if rows.is_empty() {
        return Err(nothing_held_out().because(FailureReason::DataInvalid));
    }
    Ok(rows)
}

fn nothing_held_out() -> Problem {
    Problem::error(ProblemCode::FileEmpty, "there are no held-out rows", "没有留出的数据行")
        .key("val_size")
        .found("0")
        .expected("at least one row")
        .fix(
            "name a data file with --data, or set val_size in the recipe",
            "请用 --data 指定数据文件，或在配方中设置 val_size",
        )
}

/// What a model says of a sample's targets, the right prefix given.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct SampleScore {
    pub(crate) log_probability: f64,
    /// Targets that are the most probable token.
    pub(crate) correct: f64,
    pub(crate) targets: usize,
}

/// Loss and token accuracy, the right prefix given. `decoder` tracks no gradients.
pub(crate) fn loss_on(decoder: &Decoder, samples: &[Sample], adapter: bool) -> TokenScores {
    mean_of(&scores_of(decoder, samples, Mode { adapter, dropout_seed: None }))
}

/// What a validation while training found. Where answers are judged the loss is the method's, and perplexity and token
/// accuracy are of the answers that were chosen; 0 for a reward model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validation {
    pub(crate) loss: f64,
    pub(crate) perplexity: f64,
    pub(crate) token_accuracy: f64,
    pub(crate) rewards: Option<Rewards>,
}

/// Of the model as it is, on a part of the held-out samples that `background` is of.
pub(crate) fn validate(
    decoder: &Decoder,
    samples: &[Sample],
    part: Range<usize>,
    objective: &dyn Objective,
    background: &Background,
) -> Validation {
    let indices: Vec<usize> = part.clone().collect();
    let own = &samples[part];
    let Some(preference) = objective.preference() else {
        let TokenScores { loss, token_accuracy } = loss_on(decoder, own, true);
        return Validation { loss, perplexity: loss.exp(), token_accuracy, rewards: None };
    };
    // A reward model says nothing of tokens.
    let scores = if preference.judge.has_head() { Vec::new() } else { scores_of(decoder, own, Mode::TUNED) };
    let values = match preference.judge.has_head() {
        true => rewards_of(decoder, own),
        false => scores.iter().map(|score| score.log_probability).collect(),
    };
    let answers = background.answers(preference, decoder, samples, &indices).into_iter().zip(values);
    let answers: Vec<Scored> = answers.map(|(answer, value)| Scored { answer, value }).collect();
    let loss = preference.judge(&answers, &mut vec![0.0; answers.len()]);
    let chosen = own.iter().zip(&scores).filter(|(sample, _)| !sample.rejected).map(|(_, score)| score);
    let of_chosen = (!scores.is_empty()).then(|| mean_of(chosen));
    Validation {
        loss: loss / preference.judge.units(answers.len()) as f64,
        perplexity: of_chosen.map_or(0.0, |scores| scores.loss.exp()),
        token_accuracy: of_chosen.map_or(0.0, |scores| scores.token_accuracy),
        rewards: RewardSums::new(&*preference.judge, &answers).means(),
    }
}

fn mean_of<'a>(scores: impl IntoIterator<Item = &'a SampleScore>) -> TokenScores {
    let (mut loss, mut correct, mut count) = (0.0, 0.0, 0);
    for score in scores {
        loss -= score.log_probability;
        correct += score.correct;
        count += score.targets;
    }
    TokenScores { loss: loss / count as f64, token_accuracy: correct / count as f64 }
}

/// Of each sample, a few at a time.
pub(crate) fn scores_of<'a>(
    decoder: &Decoder,
    samples: impl IntoIterator<Item = &'a Sample>,
    mode: Mode,
) -> Vec<SampleScore> {
    let samples: Vec<&Sample> = samples.into_iter().collect();
    if samples.first().is_some_and(|sample| sample.class.is_some()) {
        let rows = classes_of(decoder, samples.iter().copied(), mode);
        return class_scores(samples, &rows);
    }
    in_batches(samples, |samples, mut batch| {
        let input = input_of(&mut batch, decoder);
        let targets = Arc::new(Targets { rows: batch.target_rows, tokens: batch.target_ids, weights: None });
        let hidden = decoder.hidden_states(&input, None, mode);
        let numbers = score_targets(hidden, &decoder.output_layer(mode), targets).into_data();
        let numbers = numbers.try_into_vec::<f32>().expect("scores are f32");
        let mut numbers = numbers.as_chunks::<2>().0.iter();
        let score = |sample: &&Sample| {
            let nothing = SampleScore { targets: sample.targets(), ..SampleScore::default() };
            numbers.by_ref().take(nothing.targets).fold(nothing, |sum, number| SampleScore {
                log_probability: sum.log_probability - f64::from(number[0]),
                correct: sum.correct + f64::from(number[1]),
                ..sum
            })
        };
        samples.iter().map(score).collect()
    })
}

/// What a classifier says of each sample: the log-probability of each of its labels.
fn classes_of<'a>(decoder: &Decoder, samples: impl IntoIterator<Item = &'a Sample>, mode: Mode) -> Vec<Vec<f32>> {
    in_batches(samples, |_, mut batch| {
        let logits = decoder.classes(&input_of(&mut batch, decoder), mode);
        let labels = logits.dims()[1];
        let numbers = activation::log_softmax(logits, 1).into_data().try_into_vec::<f32>().expect("logits are f32");
        numbers.chunks(labels).map(<[_]>::to_vec).collect()
    })
}

/// Of samples with a class: what [`classes_of`] says of the right one.
fn class_scores<'a>(samples: impl IntoIterator<Item = &'a Sample>, rows: &[Vec<f32>]) -> Vec<SampleScore> {
    let classes = samples.into_iter().filter_map(|sample| sample.class.as_ref()).map(|class| class.label as usize);
    let score = |(class, row): (usize, &Vec<f32>)| SampleScore {
        log_probability: f64::from(row[class]),
        correct: f64::from(u8::from(largest(row) == class)),
        targets: 1,
    };
    classes.zip(rows).map(score).collect()
}

/// What `each` makes of every batch of at most [`BATCH_TOKENS`], or of a single longer sample.
pub(crate) fn in_batches<'a, T>(
    samples: impl IntoIterator<Item = &'a Sample>,
    mut each: impl FnMut(&[&'a Sample], Batch) -> Vec<T>,
) -> Vec<T> {
    let samples: Vec<&Sample> = samples.into_iter().collect();
    let (mut all, mut rest) = (Vec::with_capacity(samples.len()), samples.as_slice());
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|sample| {
            tokens += sample.tokens();
            tokens <= BATCH_TOKENS
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        rest = later;
        all.extend(each(now, Batch::new(now.iter().copied())));
    }
    all
}

/// Share of rows whose greedy answer is the reference, white space around it aside. `longest` are the tokens of the longest
/// reference.
pub(crate) fn exact_match(
    encoder: &Encoder,
    decoder: &Decoder,
    rows: &[Conversation],
    longest: usize,
) -> Result<f64, Problem> {
    // The same text may take more tokens than the tokenizer needs for it.
    let max_new_tokens = (2 * longest + 16) as u32;
    let answers = answers(encoder, decoder, rows, max_new_tokens, 0, true, |_| {})?;
    Ok(share_of_matches(&answers, rows))
}

fn share_of_matches(answers: &[String], rows: &[Conversation]) -> f64 {
    let matches = answers.iter().zip(rows).filter(|(answer, row)| answer.trim() == reference(row).trim()).count();
    matches as f64 / rows.len() as f64
}

/// Greedy answers to the last question of each row. Beyond the rows that are shown, an answer ends as soon as it cannot be
/// the reference any more: a model that has not learnt a task otherwise rambles to `max_new_tokens` in every row.
fn answers(
    encoder: &Encoder,
    decoder: &Decoder,
    rows: &[Conversation],
    max_new_tokens: u32,
    shown: usize,
    adapter: bool,
    mut answered: impl FnMut(u64),
) -> Result<Vec<String>, Problem> {
    let mode = Mode { adapter, dropout_seed: None };
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    let stop_ids = encoder.tokenizer.stop_ids();
    let mut texts = Vec::with_capacity(rows.len());
    for rows in rows.chunks(ANSWERS_AT_ONCE) {
        let prompts = rows.iter().map(|row| encoder.encode_prompt(row.prompt())).collect::<Result<Vec<_>, _>>()?;
        let references: Vec<String> = rows.iter().map(reference).collect();
        let mut streams: Vec<TextStream> = rows.iter().map(|_| TextStream::new(&encoder.tokenizer)).collect();
        let mut begun = vec![String::new(); rows.len()];
        let shown = shown.saturating_sub(texts.len());
        let goes_on = |slot: usize, id: u32| {
            begun[slot].push_str(&streams[slot].push(id));
            slot < shown || references[slot].trim().starts_with(begun[slot].trim())
        };
        for answer in generate(decoder, &prompts, &options, &stop_ids, mode, goes_on) {
            texts.push(encoder.tokenizer.decode(&answer.ids)?);
        }
        answered(texts.len() as u64);
    }
    Ok(texts)
}

/// What a row asks: the last turn before the answer, or the texts that have a class.
fn question(row: &Conversation) -> String {
    let before = &row.turns[..row.turns.len() - 1];
    match row.judgement {
        Judgement::Label => before.iter().map(Message::text).collect::<Vec<_>>().join("\n"),
        _ => before.last().map(Message::text).unwrap_or_default(),
    }
}

fn reference(row: &Conversation) -> String {
    row.turns.last().map(Message::text).unwrap_or_default()
}
