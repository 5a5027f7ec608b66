//! How good a model is on held-out rows: loss, perplexity, token accuracy, exact match of the answer.

use std::sync::Arc;

use justtrain_data::tokenizer::TextStream;
use justtrain_data::{Batch, Conversation, Encoder, Message, Sample, read_conversations};
use justtrain_kernels::{Targets, score_targets};
use justtrain_model::generate::generate;
use justtrain_model::{Decoder, Input, Mode, apply_tuned, device};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{
    AccuracyReport, DataFile, EvaluateOptions, EvaluationReport, Event, ExampleComparison, Failure, FailureReason,
    GenerateOptions, ModelFiles, Phase, Problem, ProblemCode, RecipeSource,
};

use crate::EventSink;
use crate::prepare::{check_lengths, encode_rows, open_encoder, read_rows};
use crate::recipe::Recipe;
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
    let template = recipe.chat_template().map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    let (encoder, _) = open_encoder(&checkpoint, template).map_err(invalid)?;
    let mut decoder = Decoder::load(&checkpoint, &device, recipe.weight_formats()).map_err(invalid)?;
    let mut rows = held_out_rows(&recipe, data)?;
    if options.max_samples > 0 {
        rows.truncate(options.max_samples as usize);
    }
    let samples = encode_rows(&encoder, &recipe, &rows, events)?;
    check_lengths(decoder.config(), &samples)?;

    events.phase(Phase::Evaluating);
    let passes = 1 + u64::from(model.adapter.is_some());
    let total = passes * rows.len() as u64;
    let report = |decoder: &Decoder, adapter: bool, done: u64, events: &mut dyn EventSink| {
        let scores = loss_on(decoder, &samples, adapter);
        let answers = answers(&encoder, decoder, &rows, options, adapter, |answered| {
            events.emit(Event::Progress { done: done + answered, total });
        })
        .map_err(|problem| problem.because(FailureReason::DataInvalid))?;
        let matches = answers.iter().zip(&rows).filter(|(answer, row)| answer.trim() == reference(row).trim()).count();
        let report = AccuracyReport {
            loss: scores.loss,
            perplexity: scores.loss.exp(),
            token_accuracy: scores.token_accuracy,
            exact_match: matches as f64 / rows.len() as f64,
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
            prompt: row.turns[row.turns.len() - 2].text(),
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
        None => read_rows(recipe)?.1,
        Some(data) => {
            let loaded = read_conversations(data).map_err(|problem| problem.because(FailureReason::DataInvalid))?;
            if !loaded.problems.is_empty() {
                return Err(Failure { reason: FailureReason::DataInvalid, problems: loaded.problems });
            }
            loaded.conversations
        }
    };
    if rows.is_empty() {
        let problem = Problem::error(ProblemCode::FileEmpty, "there are no held-out rows", "没有留出的数据行")
            .key("val_size")
            .found("0")
            .expected("at least one row")
            .fix(
                "name a data file with --data, or set val_size in the recipe",
                "请用 --data 指定数据文件，或在配方中设置 val_size",
            );
        return Err(problem.because(FailureReason::DataInvalid));
    }
    Ok(rows)
}

/// Loss and token accuracy, the right prefix given. `decoder` tracks no gradients.
pub(crate) fn loss_on(decoder: &Decoder, samples: &[Sample], adapter: bool) -> TokenScores {
    let mode = Mode { adapter, dropout_seed: None };
    let (mut loss, mut correct, mut count) = (0.0, 0.0, 0);
    let mut rest = samples;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|sample| {
            tokens += sample.ids.len();
            tokens <= BATCH_TOKENS
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        rest = later;
        let batch = Batch::new(now);
        let targets = Arc::new(Targets { rows: batch.target_rows, tokens: batch.target_ids });
        let hidden = decoder.hidden_states(&Input::packed(batch.ids, &batch.starts), None, mode);
        count += targets.len();
        let scores = score_targets(hidden, &decoder.output_layer(), targets).into_data();
        for score in scores.try_into_vec::<f32>().expect("scores are f32").chunks(2) {
            loss += f64::from(score[0]);
            correct += f64::from(score[1]);
        }
    }
    TokenScores { loss: loss / count as f64, token_accuracy: correct / count as f64 }
}

/// Greedy answers to the last question of each row. Beyond the rows that are shown, an answer ends as soon as it cannot be
/// the reference any more: a model that has not learnt a task otherwise rambles to `max_new_tokens` in every row.
fn answers(
    encoder: &Encoder,
    decoder: &Decoder,
    rows: &[Conversation],
    options: &EvaluateOptions,
    adapter: bool,
    mut answered: impl FnMut(u64),
) -> Result<Vec<String>, Problem> {
    let mode = Mode { adapter, dropout_seed: None };
    let options = GenerateOptions { max_new_tokens: options.max_new_tokens, ..GenerateOptions::default() };
    let stop_ids = encoder.tokenizer.stop_ids();
    let mut texts = Vec::with_capacity(rows.len());
    for rows in rows.chunks(ANSWERS_AT_ONCE) {
        let prompts = rows.iter().map(|row| encoder.encode_prompt(row.prompt())).collect::<Result<Vec<_>, _>>()?;
        let references: Vec<String> = rows.iter().map(reference).collect();
        let mut streams: Vec<TextStream> = rows.iter().map(|_| TextStream::new(&encoder.tokenizer)).collect();
        let mut begun = vec![String::new(); rows.len()];
        let shown = EXAMPLES.saturating_sub(texts.len());
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

fn reference(row: &Conversation) -> String {
    row.turns.last().map(Message::text).unwrap_or_default()
}
