//! Keeps a model loaded and answers until standard input closes.

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use justtrain_data::tokenizer::TextStream;
use justtrain_data::{Chat, Encoder, Message};
use justtrain_model::adapters::base_formats;
use justtrain_model::generate::generate;
use justtrain_model::{
    Classifier, Decoder, Input, Mode, WeightFormats, apply_tuned, device, is_whole_model, replaces_weights,
};
use justtrain_train::{EventSink, adapter_template, open_encoder};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{
    Control, DevicePick, Event, Failure, FailureReason, GenerateOptions, GenerationEnd, ModelFiles, Outcome, Phase,
    Problem, ProblemCode, Turn,
};

use crate::pipe::{Pipe, controls};

pub(super) fn run(model: &ModelFiles, device: DevicePick, pipe: &Pipe) -> Result<Outcome, Failure> {
    let invalid = |problem: Problem| problem.because(FailureReason::ModelInvalid);
    let mut events = pipe.clone();
    let (_, device) = device::open(device).map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    events.phase(Phase::LoadingModel);
    let checkpoint = Checkpoint::open(&model.path).map_err(invalid)?;
    let (encoder, warning) = open_encoder(&checkpoint, adapter_template(model.adapter.as_deref())).map_err(invalid)?;
    let formats = match &model.adapter {
        Some(folder) if !is_whole_model(folder) => base_formats(folder).map_err(invalid)?,
        _ => WeightFormats::default(),
    };
    let mut decoder = Decoder::load(&checkpoint, &device, formats).map_err(invalid)?;
    let mut base = None;
    if let Some(folder) = &model.adapter {
        // Clones share what is the same.
        base = replaces_weights(folder).map_err(invalid)?.then(|| decoder.clone());
        apply_tuned(&mut decoder, &checkpoint, folder).map_err(invalid)?;
    }
    events.emit(Event::Ready);
    let mut server = Server { encoder, warning, decoder, base, controls: controls(), events, cancelled: Vec::new() };
    while let Ok(control) = server.controls.recv() {
        match control {
            Control::Generate { id, turns, options, base } => server.answer(id, &turns, &options, base),
            Control::CancelGenerate { .. } => {}
            Control::Stop => break,
        }
    }
    Ok(Outcome::Served)
}

struct Server {
    encoder: Encoder,
    /// Whoever asks hears it, for the model may have been loaded for someone else.
    warning: Option<Problem>,
    decoder: Decoder,
    /// Where the adapter cannot just be switched off.
    base: Option<Decoder>,
    controls: Receiver<Control>,
    events: Pipe,
    cancelled: Vec<u64>,
}

impl Server {
    fn answer(&mut self, id: u64, turns: &[Turn], options: &GenerateOptions, base: bool) {
        if let Some(problem) = self.warning.clone() {
            self.events.emit(Event::Warned { id, problem });
        }
        match self.try_answer(id, turns, options, base) {
            Ok(event) => self.events.emit(event),
            Err(problem) => self.events.emit(Event::GenerateFailed { id, problem }),
        }
    }

    fn try_answer(&mut self, id: u64, turns: &[Turn], options: &GenerateOptions, base: bool) -> Result<Event, Problem> {
        let start = Instant::now();
        let decoder = self.base.as_ref().filter(|_| base).unwrap_or(&self.decoder);
        if let Some(classifier) = decoder.classifier().filter(|classifier| classifier.labels().len() > 1) {
            let (label, prompt_tokens) = classify(&self.encoder, decoder, classifier, turns)?;
            self.events.emit(Event::Token { id, text: label.to_owned() });
            let seconds = start.elapsed().as_secs_f64();
            return Ok(Event::Generated { id, end: GenerationEnd::Stop, prompt_tokens, answer_tokens: 1, seconds });
        }
        if !decoder.makes_words() {
            return Err(no_words());
        }
        let messages: Vec<Message> = turns.iter().map(Message::from).collect();
        let prompt = self.encoder.encode_prompt(Chat::new(&messages))?;
        let prompt_tokens = prompt.len() as u64;
        let stop_ids = self.encoder.tokenizer.stop_ids();
        let mode = Mode { adapter: !base, dropout_seed: None };
        let mut stream = TextStream::new(&self.encoder.tokenizer);
        let (events, controls, cancelled) = (&mut self.events, &self.controls, &mut self.cancelled);
        let answers = generate(decoder, &[prompt], options, &stop_ids, mode, |_, token| {
            let text = stream.push(token);
            if !text.is_empty() {
                events.emit(Event::Token { id, text });
            }
            // The daemon asks one thing at a time: all that can arrive meanwhile is a cancellation.
            cancelled.extend(controls.try_iter().filter_map(|control| match control {
                Control::CancelGenerate { id } => Some(id),
                _ => None,
            }));
            !cancelled.contains(&id)
        });
        cancelled.clear();
        let answer = &answers[0];
        Ok(Event::Generated {
            id,
            end: answer.end,
            prompt_tokens,
            answer_tokens: answer.ids.len() as u64,
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

/// The label that a classifier gives the last turn, and how many tokens it has read. Two turns of the user's are a pair; for a
/// model of images the turn is an image's path.
fn classify<'a>(
    encoder: &Encoder,
    decoder: &Decoder,
    classifier: &'a Classifier,
    turns: &[Turn],
) -> Result<(&'a str, u64), Problem> {
    let (text, pair) = match turns {
        [text, pair] if text.role == "user" && pair.role == "user" => {
            (text.content.as_str(), Some(pair.content.as_str()))
        }
        turns => (turns.last().map_or("", |turn| turn.content.as_str()), None),
    };
    let input = match (&encoder.images, decoder.config().patches) {
        (Some(images), Some(patches)) => {
            let pixels = images.read(Path::new(text))?.values();
            let ids = vec![0; images.tokens];
            Input::packed(ids, &[0, images.tokens]).with_images(&[pixels], patches, &decoder.device())
        }
        _ => {
            let longest = decoder.config().longest_sequence().unwrap_or(usize::MAX);
            let (ids, types) = encoder.tokenizer.encode_marked(text, pair, longest)?;
            let tokens = ids.len();
            Input::packed(ids, &[0, tokens]).with_types(types)
        }
    };
    let (tokens, logits) = (input.ids.len(), decoder.classes(&input, Mode::TUNED));
    let numbers = logits.into_data().try_into_vec::<f32>().expect("logits are f32");
    Ok((classifier.label_of(&numbers), tokens as u64))
}

fn no_words() -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        "this model is an encoder and no classifier yet: it has nothing to say",
        "该模型是编码器，尚未训练为分类器，不能回答",
    )
    .fix("train it with stage: cls, then name the job", "请先用 stage: cls 训练，然后指定该任务")
}
