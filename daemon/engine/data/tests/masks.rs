//! Which tokens are trained, where the template marks the answers (transformers' `return_assistant_tokens_mask`;
//! `scripts/golden/chat_templates.py` checks that mask), and where they are found as a difference.

use std::fs;
use std::path::Path;

use justtrain_data::{ChatTemplate, Conversation, EncodeOptions, Encoder, Judgement, Message, Tokenizer};
use justtrain_weights::gguf::Gguf;
use justtrain_worker_api::ProblemCode;
use serde_json::Value;

const OPTIONS: EncodeOptions = EncodeOptions { cutoff_len: 4096, train_on_prompt: false, mask_history: false };

fn encoder(source: &str) -> Encoder {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/qwen2/vocab.gguf");
    // Its first and last tokens are those of the goldens.
    let tokenizer = Tokenizer::open_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let template = ChatTemplate::new(source, &tokenizer).unwrap();
    Encoder { tokenizer, template, images: None, seq2seq: None }
}

/// A template's name and text, with conversations that it takes and the bytes that its marks say are the assistant's.
type Golden = (String, String, Vec<(Conversation, String, Vec<(usize, usize)>)>);

fn goldens() -> Vec<Golden> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat_templates.json");
    let goldens: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let marked = goldens.into_iter().filter(|golden| golden["source"].as_str().unwrap().contains("generation %}"));
    marked
        .map(|golden| {
            let text = |key: &str| golden[key].as_str().unwrap().to_owned();
            let cases = golden["cases"].as_array().unwrap().iter();
            let whole = cases.filter(|case| case["said"].is_array() && case["add_generation_prompt"] == false);
            let cases = whole.map(|case| {
                let turns: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
                let tools = case["tools"].as_array().cloned().unwrap_or_default();
                let file = Path::new("data.json").into();
                let conversation = Conversation {
                    turns,
                    tools,
                    documents: Vec::new(),
                    image: None,
                    judgement: Judgement::None,
                    file,
                    row: 1,
                };
                let said = serde_json::from_value(case["said"].clone()).unwrap();
                (conversation, case["rendered"].as_str().unwrap().to_owned(), said)
            });
            (text("name"), text("source"), cases.collect())
        })
        .collect()
}

/// The trained text of a sample, token by token.
fn trained(encoder: &Encoder, conversation: &Conversation) -> Result<String, ProblemCode> {
    let sample = encoder.encode(conversation, &OPTIONS).map_err(|problem| problem.code)?;
    let counted = sample.ids.iter().zip(&sample.target).filter(|&(_, &target)| target);
    Ok(encoder.tokenizer.decode_all(&counted.map(|(&id, _)| id).collect::<Vec<_>>()).unwrap())
}

#[test]
fn what_a_template_marks_is_trained_and_nothing_else() {
    let mut conversations = 0;
    for (name, source, cases) in goldens() {
        let encoder = encoder(&source);
        for (conversation, rendered, said) in cases {
            let marked: String = said.iter().map(|&(start, end)| &rendered[start..end]).collect();
            // A token may reach over the edge of an answer, so the trained text can be a little longer.
            let trained = trained(&encoder, &conversation).unwrap();
            let (trained, marked) = (trained.replace(['\n', ' '], ""), marked.replace(['\n', ' '], ""));
            assert_eq!(trained, marked, "{name}");
            conversations += 1;
        }
    }
    assert!(conversations >= 70, "{conversations}");
}

/// The same template without its marks trains the same tokens, or refuses a conversation whose history it rewrites.
#[test]
fn the_difference_of_two_renderings_finds_the_same_answers() {
    let (mut same, mut refused) = (0, 0);
    for (name, source, cases) in goldens() {
        let unmarked =
            source.replace("{%- generation %}", "{%- if true %}").replace("{%- endgeneration %}", "{%- endif %}");
        let (marked, unmarked) = (encoder(&source), encoder(&unmarked));
        for (conversation, ..) in cases {
            let found = trained(&unmarked, &conversation);
            if found == Err(ProblemCode::ChatTemplate) {
                refused += 1;
                continue;
            }
            let expected = trained(&marked, &conversation).unwrap();
            // Phi-3's text ends with a mark of its own.
            let found = found.unwrap();
            assert_eq!(found.strip_suffix("\n</s>").filter(|_| name == "phi3").unwrap_or(&found), expected, "{name}");
            same += 1;
        }
    }
    assert!(same >= 60 && refused > 0, "{same} {refused}");
}
