//! The real tokenizer and template of SmolLM2-135M-Instruct against transformers (`scripts/golden/smollm2.py`).

use std::path::PathBuf;

use justtrain_data::tokenizer::TextStream;
use justtrain_data::{ChatTemplate, Conversation, EncodeOptions, Encoder, Tokenizer};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{ProblemCode, Turn};
use serde_json::Value;

fn encoder() -> Encoder {
    let path = std::env::var_os("JUSTTRAIN_TEST_MODEL")
        .expect("JUSTTRAIN_TEST_MODEL names SmolLM2-135M-Instruct.Q4_1.gguf; scripts/test sets it");
    let checkpoint = Checkpoint::open(&PathBuf::from(path)).unwrap();
    let tokenizer = Tokenizer::open(&checkpoint).unwrap();
    let (template, warning) = ChatTemplate::open(&checkpoint, &tokenizer).unwrap();
    assert_eq!(warning, None);
    Encoder { tokenizer, template }
}

fn goldens() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/smollm2/goldens.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn turn(role: &str, content: &str) -> Turn {
    Turn { role: role.to_owned(), content: content.to_owned() }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn prompts_are_rendered_and_tokenised_as_transformers_does() {
    let (encoder, goldens) = (encoder(), goldens());
    for prompt in goldens["prompts"].as_array().unwrap() {
        let turns: Vec<Turn> = serde_json::from_value(prompt["messages"].clone()).unwrap();
        assert_eq!(encoder.template.render(&turns, true).unwrap(), prompt["rendered"].as_str().unwrap());
        assert_eq!(encoder.encode_prompt(&turns).unwrap(), ids(&prompt["ids"]), "{}", prompt["name"]);
    }
}

#[test]
fn lines_of_every_kind_are_tokenised_as_transformers_does() {
    let encoder = encoder();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/smollm2_lines.json");
    let lines: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(lines.len() > 100);
    for line in lines {
        let text = line["text"].as_str().unwrap();
        let encoding = encoder.tokenizer.encode(text).unwrap();
        assert_eq!(encoding.ids, ids(&line["ids"]), "{text:?}");
        assert_eq!(encoder.tokenizer.decode(&encoding.ids).unwrap(), line["decoded"].as_str().unwrap(), "{text:?}");
    }
}

#[test]
fn only_the_answers_and_the_end_of_their_turns_count() {
    let encoder = encoder();
    let turns = ["hi", "hello", "9.9?", "是的 🙂"].iter().zip(["user", "assistant"].into_iter().cycle());
    let conversation = Conversation { turns: turns.map(|(text, role)| turn(role, text)).collect(), row: 4 };
    let options = EncodeOptions { cutoff_len: 2048, train_on_prompt: false, mask_history: false };
    let counted = |options: &EncodeOptions| {
        let sample = encoder.encode(&conversation, options).unwrap();
        let counted = sample.ids.iter().zip(&sample.target).filter(|&(_, &target)| target).map(|(&id, _)| id);
        encoder.tokenizer.decode_all(&counted.collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(counted(&options), "hello<|im_end|>是的 🙂<|im_end|>");
    assert_eq!(counted(&EncodeOptions { mask_history: true, ..options }), "是的 🙂<|im_end|>");
    let all = encoder.encode(&conversation, &EncodeOptions { train_on_prompt: true, ..options }).unwrap();
    assert_eq!(all.targets() + 1, all.ids.len());
    // The system prompt alone is longer than this.
    let problem = encoder.encode(&conversation, &EncodeOptions { cutoff_len: 12, ..options }).unwrap_err();
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
