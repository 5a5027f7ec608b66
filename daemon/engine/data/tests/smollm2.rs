//! The real tokenizer and template of SmolLM2-135M-Instruct against transformers (`scripts/golden/smollm2.py`).

use std::fs;
use std::path::{Path, PathBuf};

use justtrain_data::tokenizer::TextStream;
use justtrain_data::{
    Chat, ChatTemplate, Conversation, EncodeOptions, Encoder, End, Judgement, Message, Tokenizer, check, preview,
};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{DataFile, FormatName, ProblemCode};
use serde_json::Value;

fn encoder() -> Encoder {
    let path = std::env::var_os("JUSTTRAIN_TEST_MODEL")
        .expect("JUSTTRAIN_TEST_MODEL names SmolLM2-135M-Instruct.Q4_1.gguf; scripts/test sets it");
    open(Path::new(&path))
}

fn open(model: &Path) -> Encoder {
    let checkpoint = Checkpoint::open(model).unwrap();
    let tokenizer = Tokenizer::open(&checkpoint).unwrap();
    let (template, warning) = ChatTemplate::open(&checkpoint, &tokenizer).unwrap();
    assert_eq!(warning, None);
    Encoder { tokenizer, template, images: None, seq2seq: None }
}

/// A JSON file of this crate.
fn json(path: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn conversation(turns: Vec<Message>) -> Conversation {
    let judgement = Judgement::None;
    Conversation {
        turns,
        tools: Vec::new(),
        documents: Vec::new(),
        image: None,
        judgement,
        file: Path::new("data.json").into(),
        row: 4,
    }
}

const OPTIONS: EncodeOptions = EncodeOptions { cutoff_len: 2048, train_on_prompt: false, mask_history: false };

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// As LLaMA-Factory's `stage: pt`: the text's ids and the end mark. A long text goes on in the next sample.
#[test]
fn a_text_is_read_to_its_end_without_a_template() {
    let encoder = encoder();
    let text = "Deep learning.\n".repeat(40);
    let row = Conversation { judgement: Judgement::Plain, ..conversation(vec![Message::new("assistant", &text)]) };
    let mut whole = encoder.tokenizer.encode(&text).unwrap().ids;
    whole.push(encoder.tokenizer.encode(encoder.tokenizer.eos_token().unwrap()).unwrap().ids[0]);
    let samples = encoder.encode_row(&row, &EncodeOptions { cutoff_len: 64, ..OPTIONS }).unwrap();
    assert!(samples.len() > 1 && samples.iter().all(|sample| sample.ids.len() <= 64 && sample.row == 4));
    assert!(samples.iter().all(|sample| sample.target.iter().all(|&target| target)));
    assert_eq!(samples.iter().flat_map(|sample| sample.ids.clone()).collect::<Vec<_>>(), whole);
}

#[test]
fn prompts_are_rendered_and_tokenised_as_transformers_does() {
    let (encoder, goldens) = (encoder(), json("../../../tests/fixtures/smollm2/goldens.json"));
    for prompt in goldens["prompts"].as_array().unwrap() {
        let turns: Vec<Message> = serde_json::from_value(prompt["messages"].clone()).unwrap();
        assert_eq!(
            encoder.template.render(Chat::new(&turns), End::GenerationPrompt).unwrap(),
            prompt["rendered"].as_str().unwrap()
        );
        assert_eq!(encoder.encode_prompt(Chat::new(&turns)).unwrap(), ids(&prompt["ids"]), "{}", prompt["name"]);
    }
}

#[test]
fn lines_of_every_kind_are_tokenised_as_transformers_does() {
    let (encoder, lines) = (encoder(), json("fixtures/smollm2_lines.json"));
    let lines = lines.as_array().unwrap();
    assert!(lines.len() > 100);
    for line in lines {
        let text = line["text"].as_str().unwrap();
        let encoding = encoder.tokenizer.encode(text).unwrap();
        assert_eq!(encoding.ids, ids(&line["ids"]), "{text:?}");
        assert_eq!(encoder.tokenizer.decode(&encoding.ids).unwrap(), line["decoded"].as_str().unwrap(), "{text:?}");
    }
}

#[test]
fn conversations_are_rendered_tokenised_and_masked_as_transformers_does() {
    let (encoder, goldens) = (encoder(), json("fixtures/smollm2_conversations.json"));
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() >= 15);
    for golden in goldens {
        let turns: Vec<Message> = serde_json::from_value(golden["messages"].clone()).unwrap();
        assert_eq!(encoder.template.render(Chat::new(&turns), End::Complete).unwrap(), golden["rendered"]);
        assert_eq!(
            encoder.template.render(Chat::new(&turns[..turns.len() - 1]), End::GenerationPrompt).unwrap(),
            golden["prompt"]
        );
        let sample = encoder.encode(&conversation(turns), &OPTIONS).unwrap();
        assert_eq!(sample.ids, ids(&golden["ids"]));
        let target: Vec<u32> = sample.target.into_iter().map(u32::from).collect();
        assert_eq!(target, ids(&golden["target"]), "{}", golden["rendered"]);
    }
}

#[test]
fn a_saved_tokenizer_is_the_same_in_a_folder() {
    let encoder = encoder();
    let folder = tempfile::tempdir().unwrap();
    let weights = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../weights/fixtures/tiny");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(weights.join(name), folder.path().join(name)).unwrap();
    }
    encoder.tokenizer.save(folder.path(), &encoder.template).unwrap();
    let opened = open(folder.path());
    assert_eq!(opened.template.source(), encoder.template.source());
    assert_eq!(opened.tokenizer.bos_token(), encoder.tokenizer.bos_token());
    assert_eq!(opened.tokenizer.stop_ids(), encoder.tokenizer.stop_ids());
    for line in json("fixtures/smollm2_lines.json").as_array().unwrap() {
        assert_eq!(opened.tokenizer.encode(line["text"].as_str().unwrap()).unwrap().ids, ids(&line["ids"]));
    }

    // Ends that only the generation settings name, and what a training run left in the tokenizer's file.
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [2, 5]}"#).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    file["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    fs::write(&path, file.to_string()).unwrap();
    let opened = open(folder.path());
    assert!(opened.tokenizer.stop_ids().contains(&5) && !encoder.tokenizer.stop_ids().contains(&5));
    assert_eq!(opened.tokenizer.encode("one two three four five six").unwrap().ids.len(), 6);

    fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let problem = Tokenizer::open(&checkpoint).err().unwrap();
    assert_eq!(problem.code, ProblemCode::Tokenizer);
    assert!(problem.file.unwrap().ends_with("tokenizer_config.json"));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    assert_eq!(Tokenizer::open(&checkpoint).err().unwrap().code, ProblemCode::FileNotFound);
}

#[test]
fn a_template_that_rewrites_history_can_still_train_the_last_answer() {
    let source = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}</s>\
                  {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let Encoder { tokenizer, .. } = encoder();
    let template = ChatTemplate::new(source, &tokenizer).unwrap();
    let encoder = Encoder { tokenizer, template, images: None, seq2seq: None };
    let turns = conversation(vec![
        Message::new("user", "a"),
        Message::new("assistant", "b"),
        Message::new("user", "c"),
        Message::new("assistant", "d"),
    ]);
    let problem = encoder.encode(&turns, &OPTIONS).unwrap_err();
    assert_eq!(
        (problem.code, problem.row, problem.file.as_deref()),
        (ProblemCode::ChatTemplate, Some(4), Some("data.json"))
    );
    assert!(problem.fix.en.contains("mask_history"));
    assert!(encoder.encode(&turns, &EncodeOptions { mask_history: true, ..OPTIONS }).is_ok());
    assert!(encoder.encode(&turns, &EncodeOptions { train_on_prompt: true, ..OPTIONS }).is_ok());
}

#[test]
fn a_check_counts_tokens_and_a_preview_shows_them() {
    let encoder = encoder();
    let file = tempfile::NamedTempFile::new().unwrap();
    let long = "long ".repeat(50);
    let rows = format!(
        r#"[{{"prompt":"hi","completion":"hello"}}, {{"prompt":"hi"}}, {{"prompt":"{long}","completion":"hello"}}]"#
    );
    fs::write(file.path(), rows).unwrap();
    let data = DataFile { path: file.path().to_owned(), format: None };
    let report = check(&data, Some(&encoder), 50, |_, _| ()).unwrap();
    assert_eq!((report.format, report.rows, report.usable_rows), (FormatName::PromptCompletion, 3, 1));
    let codes: Vec<_> = report.problems.iter().map(|problem| (problem.code, problem.row)).collect();
    assert_eq!(codes, [(ProblemCode::NoAnswer, Some(2)), (ProblemCode::AnswerCut, Some(3))]);
    assert!(report.problems.iter().all(|problem| problem.file.is_some()));
    assert_eq!((report.cut_rows, report.target_tokens), (Some(1), Some(2)));
    assert!(report.longest_row_tokens > Some(50));

    let shown = preview(&data, &encoder, &OPTIONS, 0, 5).unwrap();
    assert_eq!(shown.iter().map(|row| row.row).collect::<Vec<_>>(), [1, 3]);
    let text: String = shown[0].tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(text, shown[0].rendered);
    let targets = shown[0].tokens.iter().filter(|token| token.target).map(|token| token.text.as_str());
    assert_eq!(targets.collect::<Vec<_>>(), ["hello", "<|im_end|>"]);
    assert_eq!(preview(&data, &encoder, &OPTIONS, 1, 1).unwrap()[0].row, 3);
}

#[test]
fn only_the_answers_and_the_end_of_their_turns_count() {
    let encoder = encoder();
    let turns = ["hi", "hello", "9.9?", "是的 🙂"].iter().zip(["user", "assistant"].into_iter().cycle());
    let conversation = conversation(turns.map(|(text, role)| Message::new(role, *text)).collect());
    let counted = |options: &EncodeOptions| {
        let sample = encoder.encode(&conversation, options).unwrap();
        let counted = sample.ids.iter().zip(&sample.target).filter(|&(_, &target)| target).map(|(&id, _)| id);
        encoder.tokenizer.decode_all(&counted.collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(counted(&OPTIONS), "hello<|im_end|>是的 🙂<|im_end|>");
    assert_eq!(counted(&EncodeOptions { mask_history: true, ..OPTIONS }), "是的 🙂<|im_end|>");
    let all = encoder.encode(&conversation, &EncodeOptions { train_on_prompt: true, ..OPTIONS }).unwrap();
    assert_eq!(all.targets() + 1, all.ids.len());
    // The system prompt alone is longer than this.
    let problem = encoder.encode(&conversation, &EncodeOptions { cutoff_len: 12, ..OPTIONS }).unwrap_err();
    assert_eq!((problem.code, problem.row), (ProblemCode::AnswerCut, Some(4)));
}

#[test]
fn an_answer_streams_in_whole_characters() {
    let encoder = encoder();
    let text = "数字 9.11 🙂🚀 done";
    let mut stream = TextStream::new(&encoder.tokenizer);
    let ids = encoder.tokenizer.encode(text).unwrap().ids;
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    assert_eq!(pieces.concat(), text);
    assert!(pieces.iter().any(String::is_empty), "some characters take several tokens");
    assert!(encoder.tokenizer.stop_ids().contains(&2));
}
