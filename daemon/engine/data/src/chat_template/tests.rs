//! Templates against what transformers renders (`scripts/golden/chat_templates.py`).

use std::path::PathBuf;

use super::*;

fn render(source: &str, messages: &[Message], end: End) -> Result<String, Problem> {
    let tokenizer = Tokenizer::without_vocabulary("<s>", "</s>");
    ChatTemplate::new(source, &tokenizer)?.render(Chat::new(messages), end)
}

#[test]
fn a_template_knows_the_date() {
    let year = render("{{ strftime_now('%Y') }}", &[], End::Complete).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2024, "{year}");
    assert_eq!(render("{{ strftime_now('%!') }}", &[], End::Complete).unwrap_err().code, ProblemCode::ChatTemplate);
}

#[test]
fn tools_have_a_template_of_their_own_where_the_model_has_two() {
    let folder = tempfile::tempdir().unwrap();
    let list = r#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools }}"}]}"#;
    fs::write(folder.path().join("tokenizer_config.json"), list).unwrap();
    let sources = find_in_folder(folder.path());
    let tokenizer = Tokenizer::without_vocabulary("<s>", "</s>");
    let template =
        ChatTemplate::with_tool_use(&sources.default.unwrap(), sources.tool_use.as_deref(), &tokenizer).unwrap();
    let chat = Chat { messages: &[], tools: &[serde_json::json!({"a": true})], documents: &[] };
    assert_eq!(template.render(chat, End::Complete).unwrap(), "[{'a': True}]");
    assert_eq!(template.render(Chat::new(&[]), End::Complete).unwrap(), "plain");
}

#[test]
fn a_template_is_chosen_by_name_or_by_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("own.jinja"), "own").unwrap();
    assert_eq!(choose("own.jinja", folder.path()).unwrap(), "own");
    assert!(choose("llama3", folder.path()).unwrap().contains("<|eot_id|>"));
    let problem = choose("llama9", folder.path()).unwrap_err();
    assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::InvalidValue, Some("template")));
    assert!(problem.expected.unwrap().contains("qwen2_5"));
}

#[test]
fn a_broken_template_is_a_problem() {
    assert_eq!(render("{% for %}", &[], End::Complete).unwrap_err().code, ProblemCode::ChatTemplate);
}

#[derive(serde::Deserialize)]
struct Golden {
    name: String,
    source: String,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    documents: Option<Vec<Value>>,
    add_generation_prompt: bool,
    rendered: Option<String>,
    /// Bytes that the assistant says, where the template marks them.
    said: Option<Vec<(usize, usize)>>,
    refused: Option<String>,
}

/// The templates of a file and how many of their conversations were rendered and refused as transformers does.
fn compare(path: &Path) -> (usize, usize, usize) {
    let goldens: Vec<Golden> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let tokenizer = Tokenizer::without_vocabulary("<s>", "</s>");
    let (mut rendered, mut refused) = (0, 0);
    for golden in &goldens {
        let template = ChatTemplate::new(&golden.source, &tokenizer).unwrap();
        for (number, case) in golden.cases.iter().enumerate() {
            let chat = Chat {
                messages: &case.messages,
                tools: case.tools.as_deref().unwrap_or_default(),
                documents: case.documents.as_deref().unwrap_or_default(),
            };
            let end = if case.add_generation_prompt { End::GenerationPrompt } else { End::Complete };
            let name = format!("{}, conversation {number}", golden.name);
            match template.render(chat, end) {
                Ok(text) => {
                    assert_eq!(Some(text), case.rendered, "{name}");
                    rendered += 1;
                }
                Err(problem) => {
                    assert!(case.refused.is_some(), "{name}: {problem}");
                    refused += 1;
                }
            }
            if let Some(expected) = case.said.as_ref().filter(|_| end == End::Complete) {
                let said = template.render_said(chat).unwrap().1.unwrap();
                assert_eq!(&said.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>(), expected, "{name}");
            }
        }
    }
    (goldens.len(), rendered, refused)
}

#[test]
fn templates_of_every_kind_are_rendered_as_transformers_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat_templates.json");
    let (templates, rendered, refused) = compare(&path);
    assert!(templates >= 11 && rendered >= 180 && refused >= 15, "{templates} {rendered} {refused}");
}

/// Templates that are not in the repository.
#[test]
#[ignore = "needs the folder that JUSTTRAIN_TEMPLATES names"]
fn published_templates_are_rendered_as_transformers_does() {
    let folder = std::env::var_os("JUSTTRAIN_TEMPLATES").expect("JUSTTRAIN_TEMPLATES names a folder");
    assert!(compare(&PathBuf::from(folder).join("chat_templates.json")).1 > 0);
}

/// A template that comes with JustTrain is the one of the goldens.
#[test]
fn every_template_that_comes_with_justtrain_has_goldens() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chat_templates.json");
    let goldens: Vec<Golden> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let folder = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("templates")).unwrap();
    for path in folder.map(|entry| entry.unwrap().path()) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let golden = goldens.iter().find(|golden| golden.name == name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(named::built_in(name), Some(golden.source.as_str()), "{name}");
    }
}

/// transformers' `continue_final_message`.
#[test]
fn an_answer_that_was_begun_can_be_continued() {
    let messages = [Message::new("user", "a"), Message::new("assistant", " half ")];
    let open = |source: &str| render(source, &messages, End::Open).unwrap();
    assert_eq!(
        open("{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"),
        "<user>a</s><assistant> half "
    );
    assert_eq!(
        open("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"),
        "<user>a</s><assistant>half"
    );
    assert_eq!(render("{{ messages[0].content }}", &messages, End::Open).unwrap_err().code, ProblemCode::ChatTemplate);
}
