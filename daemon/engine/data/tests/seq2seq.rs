//! Rows for a model with an encoder and a decoder: a source, and a target.

use std::fs;
use std::path::Path;

use justtrain_data::{
    Chat, ChatTemplate, EncodeOptions, Encoder, Message, Sample, Seq2Seq, Tokenizer, check, preview, read_conversations,
};
use justtrain_worker_api::{DataFile, ProblemCode};

const PAD: u32 = 0;
const END: u32 = 1;

fn encoder() -> Encoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/t5");
    let tokenizer = Tokenizer::open_folder(&folder).unwrap();
    let template = ChatTemplate::new("", &tokenizer).unwrap();
    Encoder { tokenizer, template, images: None, seq2seq: Some(Seq2Seq { start: PAD, end: END }) }
}

fn encode(row: &str, cutoff_len: usize) -> Result<Sample, ProblemCode> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    fs::write(&path, row).unwrap();
    let rows = read_conversations(&DataFile { path, format: None }).unwrap().conversations;
    let options = EncodeOptions { cutoff_len, train_on_prompt: false, mask_history: false };
    encoder().encode(&rows[0], &options).map_err(|problem| problem.code)
}

/// As transformers' `T5Tokenizer` encodes the two texts, with the target shifted behind the token that decoders start with.
#[test]
fn a_row_is_a_source_and_a_target() {
    let row = r#"{"instruction": "which was first", "input": "their water", "output": "water"}"#;
    let Sample { ids, target, source, .. } = encode(row, 100).unwrap();
    let tokens = |text: &str| encoder().tokenizer.encode(text).unwrap().ids;
    assert_eq!(source, [tokens("which was first their water"), vec![END]].concat());
    assert_eq!(ids, [vec![PAD], tokens("water"), vec![END]].concat());
    assert!(!target[0] && target[1..].iter().all(|&target| target));
    // Earlier turns are part of the source.
    let row = r#"{"messages": [{"role": "system", "content": "the"}, {"role": "user", "content": "was"},
        {"role": "assistant", "content": "many"}, {"role": "user", "content": "which"}, {"role": "assistant", "content": "water"}]}"#;
    let sample = encode(&row.replace('\n', " "), 100).unwrap();
    assert_eq!(sample.source, [tokens("the was many which"), vec![END]].concat());
    assert_eq!(sample.targets(), ids.len() - 1);
    assert_eq!(sample.ids, ids);
    let asked = encoder().encode_prompt(Chat::new(&[Message::new("user", "which was first\ntheir water")])).unwrap();
    assert_eq!(asked, source);
}

#[test]
fn the_longer_of_the_two_is_cut_first_and_keeps_its_end() {
    let row = |source: usize, target: usize| {
        format!(r#"{{"prompt": "{}", "completion": "{}"}}"#, "water ".repeat(source), "many ".repeat(target))
    };
    let lengths = |source, target, cutoff_len| {
        let sample = encode(&row(source, target), cutoff_len).unwrap();
        assert_eq!((sample.source.last(), sample.ids.last()), (Some(&END), Some(&END)));
        [sample.source.len() - 1, sample.ids.len() - 2]
    };
    let (water, many) = (lengths(1, 1, 100)[0], lengths(1, 1, 100)[1]);
    assert_eq!(lengths(9, 3, 200), [9 * water, 3 * many]);
    let room = 20;
    assert_eq!(lengths(40, 2, room + 3), [room - 2 * many, 2 * many]);
    assert_eq!(lengths(2, 40, room + 3), [2 * water, room - 2 * water]);
    assert_eq!(lengths(40, 40, room + 3), [10, 10]);
    assert_eq!(encode(&row(40, 40), room + 3).unwrap().tokens(), room + 3);
    assert_eq!(encode(&row(40, 40), 4), Err(ProblemCode::AnswerCut));
}

#[test]
fn a_check_counts_both_and_a_preview_shows_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    fs::write(&path, r#"{"prompt": "which water", "completion": "many"}"#).unwrap();
    let (data, encoder) = (DataFile { path, format: None }, encoder());
    let report = check(&data, Some(&encoder), 100, |_, _| {}).unwrap();
    let options = EncodeOptions { cutoff_len: 100, train_on_prompt: false, mask_history: false };
    let shown = preview(&data, &encoder, &options, 0, 1).unwrap().remove(0);
    assert_eq!(shown.rendered, "which water\nmany");
    assert_eq!((report.tokens, report.longest_row_tokens), (Some(shown.tokens.len() as u64), report.tokens));
    let targets = shown.tokens.iter().filter(|token| token.target).count();
    assert_eq!(report.target_tokens, Some(targets as u64));
    let text: Vec<&str> = shown.tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(text.contains(&"</s>") && text.contains(&"<pad>"), "{text:?}");
}
