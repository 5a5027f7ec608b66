//! A place for whole runs on the tiny model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use justtrain_train::run::train;
use justtrain_train::{EventSink, StopToken};
use justtrain_worker_api::{Event, Failure, ModelFiles, Outcome, RecipeSource};

/// A folder with the tiny model, a tokenizer for it, data and a place for runs.
pub(crate) struct Desk(tempfile::TempDir);

impl Desk {
    pub(crate) fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let model = desk.path("model");
        fs::create_dir(&model).unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/fixtures/tiny-llama");
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixture.join(file), model.join(file)).unwrap();
        }
        fs::write(model.join("tokenizer.json"), byte_tokenizer()).unwrap();
        let config = r#"{"eos_token":"<2>","chat_template":"{% for m in messages %}{{ m.role[0] + m.content + '<2>' }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"}"#;
        fs::write(model.join("tokenizer_config.json"), config).unwrap();
        let rows: Vec<String> = (0..24)
            .map(|i| {
                format!(
                    r#"{{"prompt":"{}+{}","completion":"is {}{}"}}"#,
                    i,
                    i * 3 % 7,
                    i + i * 3 % 7,
                    "!".repeat(i % 5)
                )
            })
            .collect();
        fs::write(desk.path("data.jsonl"), rows.join("\n")).unwrap();
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn recipe(&self, extra: &str) -> RecipeSource {
        let text = format!(
            "model_name_or_path: tiny\ndataset: data.jsonl\nval_size: 4\ncutoff_len: 48\nlora_rank: 4\nlora_dropout: 0.1\n\
             learning_rate: 0.01\nnum_train_epochs: 2\nsave_steps: 3\nper_device_train_batch_size: 2\n\
             gradient_accumulation_steps: 2\n{extra}"
        );
        RecipeSource { text, file: "recipe.yaml".into(), base_dir: self.0.path().to_owned() }
    }

    /// Trains every weight.
    pub(crate) fn full_recipe(&self, extra: &str) -> RecipeSource {
        let text = format!(
            "model_name_or_path: tiny\ndataset: data.jsonl\nval_size: 4\ncutoff_len: 48\nfinetuning_type: full\n\
             learning_rate: 0.002\nnum_train_epochs: 1\nsave_steps: 3\nper_device_train_batch_size: 4\n\
             gradient_accumulation_steps: 1\n{extra}"
        );
        RecipeSource { text, ..self.recipe("") }
    }

    pub(crate) fn run(
        &self,
        recipe: &RecipeSource,
        run: &str,
        resume: bool,
        sink: &mut dyn EventSink,
        stop: &StopToken,
    ) -> Result<Outcome, Failure> {
        let teachers = BTreeMap::from([("tiny".to_owned(), self.path("model"))]);
        let model = ModelFiles { name: "tiny".into(), path: self.path("model"), teachers, ..ModelFiles::default() };
        train(recipe, &model, &self.path(run), resume, sink, stop)
    }

    /// Stops a run at each of these steps, resumes it, and compares it with one that goes through. Returns the losses.
    pub(crate) fn check_resume(&self, recipe: &RecipeSource, cuts: &[u64], result: &str) -> Vec<f64> {
        let whole = self.losses(recipe, "whole");
        let read = |run: &str| fs::read(self.path(run).join(result)).unwrap();
        for &step in cuts {
            let (stop, run) = (StopToken::default(), format!("cut-{step}"));
            let mut first = StopAfter { step, stop: stop.clone(), events: Vec::new() };
            let outcome = self.run(recipe, &run, false, &mut first, &stop).unwrap();
            assert!(matches!(outcome, Outcome::Trained { stopped: true, result } if result.steps == step));
            let mut rest = Vec::new();
            self.run(recipe, &run, true, &mut rest, &StopToken::default()).unwrap();
            assert_eq!([losses(&first.events), losses(&rest)].concat(), whole, "cut at {step}");
            assert!(read(&run) == read("whole"), "cut at {step}");
        }
        whole
    }

    pub(crate) fn losses(&self, recipe: &RecipeSource, run: &str) -> Vec<f64> {
        let mut events = Vec::new();
        self.run(recipe, run, false, &mut events, &StopToken::default()).unwrap();
        losses(&events)
    }
}

pub(crate) fn losses(events: &[Event]) -> Vec<f64> {
    let loss = |event: &Event| if let Event::Step { loss, .. } = event { Some(*loss) } else { None };
    events.iter().filter_map(loss).collect()
}

/// Pairs, or answers that are good or bad.
pub(crate) fn judged_rows(desk: &Desk, kto: bool) {
    let row = |i: usize| {
        let (prompt, right, wrong) = (format!("{i}+{}", i * 3 % 7), i + i * 3 % 7, "no ".repeat(1 + i % 3));
        match (kto, i % 4) {
            (false, _) => format!(r#"{{"prompt":"{prompt}","chosen":"is {right}","rejected":"{wrong}"}}"#),
            (true, 3) => format!(r#"{{"prompt":"{prompt}","completion":"{wrong}","label":false}}"#),
            (true, _) => format!(r#"{{"prompt":"{prompt}","completion":"is {right}","label":true}}"#),
        }
    };
    fs::write(desk.path("data.jsonl"), (0..24).map(row).collect::<Vec<_>>().join("\n")).unwrap();
}

/// Each printable ASCII character is a token.
fn byte_tokenizer() -> String {
    let mut vocab: Vec<String> = (0..3).map(|i| format!(r#""<{i}>":{i}"#)).collect();
    vocab.extend(
        (32u8..127).zip(3..).map(|(byte, id)| format!("{}:{id}", serde_json::json!(char::from(byte).to_string()))),
    );
    format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"post_processor":null,
            "added_tokens":[{{"id":2,"content":"<2>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}],
            "pre_tokenizer":{{"type":"Split","pattern":{{"Regex":"."}},"behavior":"Isolated","invert":false}},
            "decoder":{{"type":"Fuse"}},
            "model":{{"type":"WordLevel","vocab":{{{}}},"unk_token":"<0>"}}}}"#,
        vocab.join(",")
    )
}

/// Stops the run after a step, as a person who cancels would.
pub(crate) struct StopAfter {
    pub(crate) step: u64,
    pub(crate) stop: StopToken,
    pub(crate) events: Vec<Event>,
}

impl EventSink for StopAfter {
    fn emit(&mut self, event: Event) {
        if matches!(event, Event::Step { step, .. } if step == self.step) {
            self.stop.stop();
        }
        self.events.push(event);
    }
}
