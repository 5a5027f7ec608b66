//! Classifiers, of encoders and of decoders: whole runs, what is left of them, and what is refused.

use std::fs;
use std::path::Path;

use justtrain_model::families::from_config;
use justtrain_train::StopToken;
use justtrain_train::evaluate::evaluate;
use justtrain_worker_api::{
    DataFile, EvaluateOptions, EvaluationReport, Failure, FailureReason, ModelFiles, Problem, RecipeSource,
};
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::random_model::write_weights;

/// Has a random encoder in place of the tiny decoder, as it is before anybody has made a classifier of it.
fn encoder(desk: &Desk, pooler: bool) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (model, words) = (desk.path("model"), fixtures.join("data/fixtures/tokenizers/bert-uncased"));
    fs::remove_dir_all(&model).unwrap();
    fs::create_dir(&model).unwrap();
    for file in ["vocab.txt", "tokenizer_config.json"] {
        fs::copy(words.join(file), model.join(file)).unwrap();
    }
    let path = model.join("config.json");
    let text = fs::read_to_string(fixtures.join("model/fixtures/classifiers/bert/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["vocab_size"] = fs::read_to_string(words.join("vocab.txt")).unwrap().lines().count().into();
    config["architectures"] = json!(["BertForMaskedLM"]);
    config.as_object_mut().unwrap().retain(|key, _| key != "id2label" && key != "label2id");
    fs::write(&path, config.to_string()).unwrap();
    let tensors = from_config(&config, &path).unwrap().tensors();
    let tensors = tensors.into_iter().filter(|(name, _)| pooler || !name.contains("pooler"));
    // What a model for masked words has beside.
    let tensors = tensors.chain([("cls.predictions.bias".to_owned(), vec![3])]);
    write_weights(&model, tensors);
}

/// The rows that are not held out: 52 of 60.
const TRAINED: f64 = 0.866;
const NAMES: [&str; 3] = ["many", "none", "some"];

/// A text has its class in one of its words.
fn rows(desk: &Desk, name: &str, count: usize) {
    let row = |i: usize| {
        let (class, filler) = (i * 7 % 3, ["the", "in", "was", "their", "which"][i * 11 % 5]);
        let word = ["more", "not", "some"][class];
        json!({"text": format!("{filler} {word} {filler}"), "label": NAMES[class]}).to_string()
    };
    fs::write(desk.path(name), (0..count).map(row).collect::<Vec<_>>().join("\n")).unwrap();
}

fn recipe(desk: &Desk, extra: &str) -> RecipeSource {
    let text = format!(
        "model_name_or_path: tiny\ndataset: data.jsonl\nstage: cls\nval_size: 6\ncutoff_len: 16\nlearning_rate: 0.01\n\
         max_steps: 48\nsave_steps: 9\nper_device_train_batch_size: 6\nprecision: fp32\nlr_scheduler_type: constant\n{extra}"
    );
    RecipeSource { text, ..desk.recipe("") }
}

/// A few images, at a rate at which a model of images learns them by heart.
fn without_validation(recipe: RecipeSource) -> RecipeSource {
    let text = recipe
        .text
        .replace("val_size: 6\n", "val_size: 0\n")
        .replace("learning_rate: 0.01\n", "learning_rate: 0.003\n");
    RecipeSource { text, ..recipe }
}

/// On all rows.
fn judge(desk: &Desk, recipe: &RecipeSource, tuned: &str) -> EvaluationReport {
    let adapter = Some(desk.path(tuned));
    let model = ModelFiles { name: "tiny".into(), path: desk.path("model"), adapter, ..ModelFiles::default() };
    let options = EvaluateOptions { max_samples: 0, max_new_tokens: 1 };
    let data = DataFile { path: desk.path("data.jsonl"), format: None };
    evaluate(recipe, &model, Some(&data), &options, &mut Vec::new()).unwrap()
}

#[test]
fn a_classifier_learns_resumes_and_judges() {
    let dropped = "lora_rank: 8\nlora_alpha: 32\nlora_dropout: 0.1\nattention_dropout: 0.1\nresid_pdrop: 0.05\n";
    let cases = [
        (true, dropped, "adapter", "adapter_model.safetensors"),
        // The base model has no pooler: the adapter has it.
        (false, dropped, "adapter", "adapter_model.safetensors"),
        (true, "finetuning_type: full\nlabel_smoothing_factor: 0.1\n", "model", "model.safetensors"),
        (
            true,
            "lora_rank: 8\nlora_alpha: 32\nquantization_bit: 4\npacking: true\n",
            "adapter",
            "adapter_model.safetensors",
        ),
    ];
    for (pooler, extra, folder, weights) in cases {
        let desk = Desk::new();
        encoder(&desk, pooler);
        rows(&desk, "data.jsonl", 60);
        let recipe = recipe(&desk, extra);
        let losses = desk.check_resume(&recipe, &[1, 12], &format!("{folder}/{weights}"));
        assert!(losses[47] < 0.6 * losses[0], "{extra}: {losses:?}");
        let report = judge(&desk, &recipe, &format!("whole/{folder}"));
        let tuned = report.tuned.unwrap();
        assert_eq!((report.rows, report.target_tokens), (60, 60));
        assert_eq!(tuned.exact_match, tuned.token_accuracy, "{extra}");
        assert!(tuned.exact_match >= TRAINED && report.base.exact_match < 0.7, "{extra}: {tuned:?} {:?}", report.base);
        for example in &report.examples {
            assert!(NAMES.contains(&example.tuned.as_ref().unwrap().as_str()), "{example:?}");
            assert!(NAMES.contains(&example.base.as_str()), "{}", example.base);
        }
    }
}

#[test]
fn a_decoder_can_be_a_classifier() {
    let desk = Desk::new();
    rows(&desk, "data.jsonl", 60);
    let recipe = recipe(&desk, "lora_rank: 8\nlora_alpha: 16\n");
    let losses = desk.check_resume(&recipe, &[7], "adapter/adapter_model.safetensors");
    assert!(losses[47] < 0.6 * losses[0], "{losses:?}");
    assert!(judge(&desk, &recipe, "whole/adapter").tuned.unwrap().exact_match >= TRAINED);
    let config: Value =
        serde_json::from_str(&fs::read_to_string(desk.path("whole/adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["score"])));
    let labels: Vec<String> =
        serde_json::from_str(&fs::read_to_string(desk.path("whole/adapter/labels.json")).unwrap()).unwrap();
    assert_eq!(labels, NAMES);
}

/// Images in all their forms, each several times.
#[test]
fn images_are_told_apart() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let desk = Desk::new();
    let model = desk.path("model");
    fs::remove_dir_all(&model).unwrap();
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixtures.join("model/fixtures/classifiers/vit").join(file), model.join(file)).unwrap();
    }
    let settings = json!({"size": {"height": 12, "width": 12}, "image_mean": [0.5, 0.4, 0.3], "resample": 3});
    fs::write(model.join("preprocessor_config.json"), settings.to_string()).unwrap();
    let kinds = [("grey.png", "none"), ("alpha.png", "some"), ("wide.png", "none"), ("photo.jpg", "many")];
    for (file, _) in kinds {
        fs::copy(fixtures.join("data/fixtures/images").join(file), desk.path(file)).unwrap();
    }
    let row = |i: usize| json!({"image": (kinds[i % 4].0), "label": (kinds[i % 4].1)}).to_string();
    fs::write(desk.path("data.jsonl"), (0..24).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    for (extra, folder, weights) in [
        ("lora_rank: 8\nlora_alpha: 32\nlora_dropout: 0.1\n", "adapter", "adapter_model.safetensors"),
        ("finetuning_type: full\noptim: adamw_8bit\n", "model", "model.safetensors"),
    ] {
        let recipe = without_validation(recipe(&desk, extra));
        let losses = desk.check_resume(&recipe, &[5], &format!("{folder}/{weights}"));
        assert!(losses[47] < 0.3 * losses[0], "{extra}: {losses:?}");
        let report = judge(&desk, &recipe, &format!("whole/{folder}"));
        assert_eq!((report.rows, report.tuned.unwrap().exact_match), (24, 1.0), "{extra}");
        assert!(kinds.iter().any(|(file, _)| report.examples[0].prompt == *file));
        for run in ["whole", "cut-5"] {
            fs::remove_dir_all(desk.path(run)).unwrap();
        }
    }
    // A model of images reads no text, and an image that cannot be read is one problem of its row.
    let rows = |key: &str, of: [&str; 2]| {
        let row = |i: usize| json!({key: (of[i % 2]), "label": (["a", "b"][i % 2])}).to_string();
        fs::write(desk.path("data.jsonl"), (0..8).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    };
    for (key, of) in [("text", ["the", "of"]), ("image", ["grey.png", "data.jsonl"])] {
        rows(key, of);
        let (reason, problem) = refused(&desk, &without_validation(recipe(&desk, "")));
        assert_eq!((reason, problem.key.as_deref()), (FailureReason::DataInvalid, Some(key)), "{problem}");
        assert!(problem.row.is_some() && problem.file.is_some(), "{problem}");
    }
}

/// Whoever goes on with a classifier has its labels in its order.
#[test]
fn an_adapter_to_go_on_with_brings_its_labels() {
    let desk = Desk::new();
    encoder(&desk, true);
    rows(&desk, "data.jsonl", 60);
    desk.losses(&recipe(&desk, "lora_rank: 8\nlora_alpha: 32\n"), "first");
    // Two of the three classes, of which the first is not there.
    let row = |i: usize| json!({"text": (["the not", "in some"][i % 2]), "label": NAMES[1 + i % 2]}).to_string();
    fs::write(desk.path("data.jsonl"), (0..30).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let second = recipe(&desk, "adapter_name_or_path: first/adapter\n");
    let losses = desk.losses(&second, "second");
    assert!(losses[0] < 0.3, "it knows them already: {losses:?}");
    let labels = fs::read_to_string(desk.path("second/adapter/labels.json")).unwrap();
    assert_eq!(serde_json::from_str::<Vec<String>>(&labels).unwrap(), NAMES);
}

fn refused(desk: &Desk, recipe: &RecipeSource) -> (FailureReason, Problem) {
    let Failure { reason, problems } =
        desk.run(recipe, "refused", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
    (reason, problems.into_iter().next().unwrap())
}

#[test]
fn what_cannot_be_told_apart_is_refused() {
    let desk = Desk::new();
    encoder(&desk, true);
    let write = |rows: &[&str]| fs::write(desk.path("data.jsonl"), rows.join("\n")).unwrap();
    let one = r#"{"text": "the", "label": "a"}"#;
    write(&[one; 8]);
    let (reason, problem) = refused(&desk, &recipe(&desk, ""));
    assert_eq!(
        (reason, problem.key.as_deref(), problem.found.as_deref()),
        (FailureReason::DataInvalid, Some("label"), Some("a"))
    );
    write(&[one, r#"{"text": "of"}"#]);
    let (reason, problem) = refused(&desk, &recipe(&desk, ""));
    assert_eq!((reason, problem.row, problem.key.as_deref()), (FailureReason::DataInvalid, Some(2), Some("label")));
    // A label of held-out rows alone.
    let rows: Vec<String> = (0..12).map(|i| format!(r#"{{"text": "the {i}", "label": {i}}}"#)).collect();
    fs::write(desk.path("data.jsonl"), rows.join("\n")).unwrap();
    let (reason, problem) = refused(&desk, &recipe(&desk, ""));
    assert_eq!((reason, problem.key.as_deref()), (FailureReason::DataInvalid, Some("label")));
    assert!(problem.row.is_some() && problem.message.zh.contains("标签"), "{problem}");
}

#[test]
fn an_encoder_makes_no_words() {
    let desk = Desk::new();
    encoder(&desk, true);
    let text = recipe(&desk, "").text.replace("stage: cls\n", "stage: sft\n");
    let (reason, problem) = refused(&desk, &RecipeSource { text, ..desk.recipe("") });
    assert_eq!((reason, problem.key.as_deref()), (FailureReason::RecipeInvalid, Some("stage")));
    assert_eq!(problem.expected.as_deref(), Some("cls"));
    // Answers are no classes.
    let (reason, problem) = refused(&desk, &recipe(&desk, ""));
    assert_eq!(
        (reason, problem.expected.as_deref()),
        (FailureReason::DataInvalid, Some("text or image, and label, in every row"))
    );
    for extra in ["train_on_prompt: true\n", "mask_history: true\n", "rdrop_alpha: 1\nresid_pdrop: 0.1\n"] {
        let (reason, problem) = refused(&desk, &recipe(&desk, extra));
        let key = extra.split(':').next();
        assert_eq!((reason, problem.key.as_deref()), (FailureReason::RecipeInvalid, key), "{problem}");
    }
}
