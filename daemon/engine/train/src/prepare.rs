//! From a recipe to samples: tokenizer, data files, held-out rows.

use std::path::Path;
use std::{fs, mem};

use justtrain_data::{
    Batch, ChatTemplate, Conversation, EncodeOptions, Encoder, ImageProcessor, Images, Judgement, Labels, Loaded,
    Sample, Seq2Seq, Tokenizer, read_conversations, split,
};
use justtrain_model::families::decoder_config;
use justtrain_model::{Decoder, DecoderConfig, Input};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{DataFile, Event, Failure, FailureReason, Problem, ProblemCode};

use crate::EventSink;
use crate::recipe::{Recipe, Stage, seq2seq_rules};

/// Beside an adapter's weights.
pub(crate) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Problems that a failure lists.
const LISTED: usize = 100;

/// What a model reads by: its tokenizer, and `template` or else the model's own, with a warning where it has none; or what it
/// makes of images. Models of two stacks have no template.
pub fn open_encoder(checkpoint: &Checkpoint, template: Option<String>) -> Result<(Encoder, Option<Problem>), Problem> {
    let config = decoder_config(checkpoint).ok();
    if let (Some(patches), Some(folder)) = (config.as_ref().and_then(|config| config.patches), checkpoint.folder()) {
        let (processor, tokenizer) = (ImageProcessor::open(folder)?, Tokenizer::none());
        let images = Images { processor, size: patches.image_size, tokens: patches.tokens() };
        let template = ChatTemplate::new("", &tokenizer)?;
        return Ok((Encoder { tokenizer, template, images: Some(images), seq2seq: None }, None));
    }
    let tokenizer = Tokenizer::open(checkpoint)?;
    if let Some(stacks) = config.as_ref().and_then(|config| config.seq2seq) {
        let seq2seq = Some(Seq2Seq { start: stacks.start, end: stacks.end });
        let template = ChatTemplate::new("", &tokenizer)?;
        return Ok((Encoder { tokenizer, template, images: None, seq2seq }, None));
    }
    let (template, warning) = match template {
        Some(source) => (ChatTemplate::new(&source, &tokenizer)?, None),
        None => ChatTemplate::open(checkpoint, &tokenizer)?,
    };
    // Nobody chats with an encoder.
    let warning = warning.filter(|_| config.is_none_or(|config| config.makes_words));
    Ok((Encoder { tokenizer, template, images: None, seq2seq: None }, warning))
}

/// The same for a recipe, where what it asks for goes with the model.
pub(crate) fn open_reader(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<(Encoder, Option<Problem>), Failure> {
    let invalid = |problem: Problem| problem.because(FailureReason::ModelInvalid);
    let template = recipe.chat_template().map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    seq2seq_rules::check(recipe, &decoder_config(checkpoint).map_err(invalid)?)?;
    open_encoder(checkpoint, template).map_err(invalid)
}

/// A batch as the network takes it.
pub(crate) fn input_of(batch: &mut Batch, decoder: &Decoder) -> Input {
    let input = Input::packed(mem::take(&mut batch.ids), &batch.starts).with_types(mem::take(&mut batch.types));
    if !batch.source_ids.is_empty() {
        return input.with_sources(&batch.source_ids, &batch.source_starts);
    }
    match decoder.config().patches {
        None => input,
        Some(patches) => {
            let images: Vec<Vec<f32>> = batch.images.iter().map(|image| image.values()).collect();
            input.with_images(&images, patches, &decoder.device())
        }
    }
}

/// The template that an adapter was trained with, where its folder keeps one.
pub fn adapter_template(adapter: Option<&Path>) -> Option<String> {
    fs::read_to_string(adapter?.join(CHAT_TEMPLATE)).ok()
}

/// The recipe's rows: those to train on, and those held out. Refused when any row has a problem, so that nothing is
/// left out behind a person's back.
pub(crate) fn read_rows(recipe: &Recipe) -> Result<(Vec<Conversation>, Vec<Conversation>), Failure> {
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    for path in recipe.dataset_files() {
        match read_conversations(&DataFile { path: path.clone(), format: recipe.dataset_format.name() }) {
            Ok(loaded) => {
                problems.extend(other_kind(recipe.stage, &loaded).map(|problem| problem.file(path.display())));
                rows.extend(loaded.conversations);
                problems.extend(loaded.problems);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        problems.truncate(LISTED);
        return Err(Failure { reason: FailureReason::DataInvalid, problems });
    }
    let held_out = recipe.validation_rows(rows.len());
    Ok(split(rows, held_out, recipe.seed))
}

/// Whether a row says of its answers what the stage learns from.
pub(crate) fn fits(stage: Stage, row: &Conversation) -> bool {
    match stage {
        Stage::Pt => row.judgement == Judgement::Plain,
        Stage::Sft => row.judgement == Judgement::None,
        Stage::Dpo | Stage::Rm => matches!(row.judgement, Judgement::Over(_)),
        Stage::Kto => matches!(row.judgement, Judgement::Good(_)),
        Stage::Cls => row.judgement == Judgement::Label,
    }
}

/// The first row that the stage cannot learn from.
fn other_kind(stage: Stage, loaded: &Loaded) -> Option<Problem> {
    let other = loaded.conversations.iter().find(|row| !fits(stage, row))?;
    let (found, fitting) = match other.judgement {
        Judgement::Plain => ("plain texts", "pt"),
        Judgement::None => ("answers of which nothing is said", "sft"),
        Judgement::Over(_) => ("pairs of a chosen and a rejected answer", "dpo or rm"),
        Judgement::Good(_) => ("answers that are good or bad", "kto"),
        Judgement::Label => ("texts or images with a label", "cls"),
    };
    let expected = match stage {
        Stage::Pt => "text in every row",
        Stage::Sft => "an answer in every row",
        Stage::Dpo | Stage::Rm => "chosen and rejected in every row",
        Stage::Kto => "kto_tag or label, true or false, in every row",
        Stage::Cls => "text or image, and label, in every row",
    };
    let problem = Problem::error(
        ProblemCode::InvalidValue,
        "these rows are not what this stage learns from",
        "这些数据不适用于该 stage",
    );
    let problem = problem.key("stage").row(other.row).found(found).expected(expected);
    Some(problem.fix(
        format!("write stage: {fitting}, or name another data file"),
        format!("写 stage: {fitting}，或换一个数据文件"),
    ))
}

/// Learned positions end: no sequence may be longer than their table.
pub(crate) fn check_lengths(config: &DecoderConfig, samples: &[Sample]) -> Result<(), Failure> {
    let longest = samples.iter().map(|sample| sample.ids.len()).max().unwrap_or(0);
    let Some(limit) = config.longest_sequence().filter(|&limit| longest > limit) else { return Ok(()) };
    let problem = Problem::error(
        ProblemCode::InvalidValue,
        "a row is longer than this model's table of positions",
        "有数据行超过了该模型的位置表长度",
    )
    .key("cutoff_len")
    .found(format!("a row of {longest} tokens"))
    .expected(format!("at most {limit} tokens"))
    .fix(format!("write cutoff_len: {limit}"), format!("请写 cutoff_len: {limit}"));
    Err(problem.because(FailureReason::RecipeInvalid))
}

/// Tokenises rows. Those whose answer `cutoff_len` cuts away are warned about and left out; none left is a failure. `labels`
/// are a classifier's.
pub(crate) fn encode_rows(
    encoder: &Encoder,
    recipe: &Recipe,
    labels: &Labels,
    rows: &[Conversation],
    events: &mut dyn EventSink,
) -> Result<Vec<Sample>, Failure> {
    let options = EncodeOptions {
        cutoff_len: recipe.cutoff_len,
        train_on_prompt: recipe.train_on_prompt,
        mask_history: recipe.mask_history,
    };
    let (mut samples, mut cut) = (Vec::with_capacity(rows.len()), Vec::new());
    for (done, row) in rows.iter().enumerate() {
        let of_row = match recipe.stage {
            Stage::Cls => encoder.encode_labelled(row, labels, recipe.cutoff_len).map(|sample| vec![sample]),
            _ => encoder.encode_row(row, &options),
        };
        match of_row {
            Ok(of_row) => samples.extend(of_row),
            Err(problem) if problem.code == ProblemCode::AnswerCut => cut.push(problem),
            Err(problem) => return Err(problem.because(FailureReason::DataInvalid)),
        }
        if (done + 1) % 1000 == 0 {
            events.emit(Event::Progress { done: done as u64 + 1, total: rows.len() as u64 });
        }
    }
    cut.truncate(LISTED);
    if samples.is_empty() && !rows.is_empty() {
        let problems = cut
            .into_iter()
            .map(|problem| Problem { severity: justtrain_worker_api::Severity::Error, ..problem })
            .collect();
        return Err(Failure { reason: FailureReason::DataInvalid, problems });
    }
    cut.iter().for_each(|problem| events.warn(problem));
    Ok(samples)
}
