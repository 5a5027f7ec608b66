//! T5: whole runs of a model with an encoder and a decoder, what is left of them, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use justtrain_model::families::from_config;
use justtrain_train::StopToken;
use justtrain_train::estimate::estimate;
use justtrain_train::evaluate::evaluate;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::{
    EvaluateOptions, EvaluationReport, ExampleComparison, Failure, FailureReason, ModelFiles, Problem, RecipeSource,
    Room,
};
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::random_model::write_weights;

/// A random T5 in place of the tiny decoder.
fn t5(desk: &Desk, fixture: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let model = desk.path("model");
    fs::remove_dir_all(&model).unwrap();
    fs::create_dir(&model).unwrap();
    fs::copy(fixtures.join("data/fixtures/tokenizers/t5/spiece.model"), model.join("spiece.model")).unwrap();
    let text = fs::read_to_string(fixtures.join("model/fixtures/families").join(fixture).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["vocab_size"] = 1200.into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    write_weights(&model, from_config(&config, Path::new("config.json")).unwrap().tensors());
}

/// The answer is a word of the question.
fn rows(desk: &Desk) {
    let words = ["the", "was", "their", "which", "many"];
    let row = |i: usize| {
        let word = words[i * 7 % 5];
        let input = format!("{word} {i}");
        json!({"instruction": "say it after me", "input": input, "output": format!("{word} and {word}.")}).to_string()
    };
    fs::write(desk.path("data.jsonl"), (0..40).map(row).collect::<Vec<_>>().join("\n")).unwrap();
}

fn desk(fixture: &str) -> Desk {
    let desk = Desk::new();
    t5(&desk, fixture);
    rows(&desk);
    desk
}

fn recipe(desk: &Desk, extra: &str) -> RecipeSource {
    let text = format!(
        "model_name_or_path: tiny\ndataset: data.jsonl\nval_size: 4\ncutoff_len: 48\nlearning_rate: 0.01\nmax_steps: 24\n\
         save_steps: 9\nper_device_train_batch_size: 6\nprecision: fp32\nlr_scheduler_type: constant\n{extra}"
    );
    RecipeSource { text, ..desk.recipe("") }
}

fn model(desk: &Desk, adapter: Option<PathBuf>) -> ModelFiles {
    ModelFiles { name: "tiny".into(), path: desk.path("model"), adapter, ..ModelFiles::default() }
}

fn judge(desk: &Desk, recipe: &RecipeSource, tuned: &str) -> EvaluationReport {
    let options = EvaluateOptions { max_samples: 0, max_new_tokens: 8 };
    evaluate(recipe, &model(desk, Some(desk.path(tuned))), None, &options, &mut Vec::new()).unwrap()
}

#[test]
fn an_encoder_and_its_decoder_learn_resume_and_answer() {
    let lora = "lora_rank: 8\nlora_alpha: 32\n";
    // Small scaled logits of a random table cannot tell much apart.
    let cases = [
        ("t5", format!("{lora}lora_dropout: 0.1\nattention_dropout: 0.1\nresid_pdrop: 0.05\n"), "adapter", 0.96),
        (
            "t5_v1_1",
            format!("{lora}quantization_bit: 4\npacking: true\ngradient_checkpointing: true\n"),
            "adapter",
            0.9,
        ),
        ("t5_v1_1", format!("{lora}use_dora: true\ngradient_accumulation_steps: 2\n"), "adapter", 0.9),
        ("t5", "finetuning_type: full\nlabel_smoothing_factor: 0.1\n".to_owned(), "model", 0.9),
        ("t5_v1_1", "finetuning_type: full\nmax_grad_norm: 0\noptim: adamw_8bit\n".to_owned(), "model", 0.6),
    ];
    for (fixture, extra, folder, share) in cases {
        let desk = desk(fixture);
        let weights = if folder == "model" { "model.safetensors" } else { "adapter_model.safetensors" };
        let recipe = recipe(&desk, &extra);
        let losses = desk.check_resume(&recipe, &[1, 12], &format!("{folder}/{weights}"));
        assert!(losses[23] < share * losses[0], "{fixture} {extra}: {losses:?}");
        let report = judge(&desk, &recipe, &format!("whole/{folder}"));
        let tuned = report.tuned.unwrap();
        assert!(tuned.token_accuracy > report.base.token_accuracy, "{extra}: {tuned:?} {:?}", report.base);
        assert_eq!(report.rows, 4);
    }
}

/// A model that says all answers, trained in full.
fn learnt_by_heart() -> (Desk, EvaluationReport) {
    let desk = desk("t5_v1_1");
    let recipe = recipe(&desk, "finetuning_type: full\n");
    let text = recipe.text.replace("max_steps: 24", "max_steps: 240").replace("save_steps: 9", "save_steps: 500");
    let recipe = RecipeSource { text, ..recipe };
    desk.losses(&recipe, "whole");
    let report = judge(&desk, &recipe, "whole/model");
    (desk, report)
}

/// `JUSTTRAIN_PYTHON` is an interpreter with the packages of `scripts/golden/requirements.txt`: by its own tokenizer's file the
/// model answers there as it does here.
#[test]
#[ignore = "needs JUSTTRAIN_PYTHON"]
fn what_is_saved_answers_in_transformers() {
    let (desk, report) = learnt_by_heart();
    let answer = |example: &ExampleComparison| {
        json!({"prompt": example.prompt, "answer": example.tuned, "answer_tokens": 8, "end": "stop"}).to_string()
    };
    let answers: Vec<String> = report.examples.iter().map(answer).collect();
    fs::write(desk.path("answers.jsonl"), answers.join("\n")).unwrap();
    let python = std::env::var_os("JUSTTRAIN_PYTHON").expect("JUSTTRAIN_PYTHON names an interpreter");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../scripts/golden/check_export.py");
    let mut check = Command::new(python);
    check.arg(script).arg("--base").arg(desk.path("model"));
    check.arg("--merged").arg(desk.path("whole/model")).arg("--answers").arg(desk.path("answers.jsonl"));
    let output = check.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// Every token of an answer and the mark of its end are learnt; a model that is trained long enough says them.
#[test]
fn what_is_learnt_by_heart_is_said() {
    let (desk, report) = learnt_by_heart();
    assert_eq!(report.tuned.unwrap().exact_match, 1.0, "{:?}", report.examples);
    let example = &report.examples[0];
    assert!(example.prompt.starts_with("say it after me\n") && example.reference.ends_with('.'), "{example:?}");
    // What is saved is complete, for transformers as well.
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        assert!(desk.path("whole/model").join(file).is_file(), "{file}");
    }
    assert!(!desk.path("whole/model/chat_template.jinja").exists());
}

/// What is written once for all families does its work here as well.
#[test]
fn every_way_of_training_goes_with_two_stacks() {
    let base = recipe(&desk("t5"), "").text;
    for extra in [
        "rdrop_alpha: 1\nresid_pdrop: 0.1\n",
        "neftune_noise_alpha: 5\n",
        "pissa_init: true\n",
        "loftq_init: true\nquantization_bit: 4\n",
        "use_rslora: true\nlora_target: q,v\nlayers_to_transform: [0]\n",
        "lora_target: lm_head,wi,wo\n",
        "modules_to_save: [relative_attention_bias, layer_norm, final_layer_norm]\n",
        "precision: bf16\n",
        "precision: fp16\n",
        "teacher: tiny\nkd_alpha: 0.5\n",
        "finetuning_type: freeze\nfreeze_trainable_layers: 1\n",
        "finetuning_type: freeze\nfreeze_trainable_layers: -1\nfreeze_extra_modules: shared\n",
        "finetuning_type: freeze\nunfrozen_parameters: [relative_attention_bias]\n",
        "finetuning_type: full\nunfreeze_schedule: {head: 0, 2: 6, all: 12}\nlr_decay: 1.5\n",
        "finetuning_type: full\nprecision: bf16\ngradient_checkpointing: true\nl2sp_alpha: 0.01\n",
        "stages: [{name: a, dataset: data.jsonl, max_steps: 8}, {name: b, dataset: data.jsonl, max_steps: 8, ewc_lambda: 1}]\n",
        "stages: [{name: a, dataset: data.jsonl, max_steps: 8}, {name: b, dataset: data.jsonl, max_steps: 8, lwf_lambda: 0.5}]\n",
        "stages: [{name: a, dataset: data.jsonl, max_steps: 8}, {name: b, dataset: data.jsonl, max_steps: 8, olora_lambda: 0.5}]\n",
    ] {
        let desk = desk("t5");
        let mut lines: Vec<&str> = base.lines().collect();
        let written = |key: &str| extra.lines().any(|line| line.starts_with(key));
        lines.retain(|line| !line.split(':').next().is_some_and(written));
        if extra.starts_with("stages") {
            lines.retain(|line| !line.starts_with("dataset") && !line.starts_with("max_steps"));
        }
        let recipe = RecipeSource { text: format!("{}\n{extra}", lines.join("\n")), ..desk.recipe("") };
        let losses = desk.losses(&recipe, "run");
        assert!(losses.last() < losses.first(), "{extra}: {losses:?}");
    }
}

/// The table of one stack's biases is trained alone, and nothing else changes.
#[test]
fn a_table_of_biases_is_trained_alone() {
    let desk = desk("t5");
    desk.losses(&recipe(&desk, "finetuning_type: freeze\nunfrozen_parameters: ['decoder.*attention_bias']\n"), "run");
    let changed = crate::freezing::changed(&desk.path("model"), &desk.path("run/model"));
    let table = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    assert_eq!(changed.into_iter().collect::<Vec<_>>(), [table]);
}

#[test]
fn an_adapter_is_one_for_peft() {
    let desk = desk("t5");
    desk.losses(&recipe(&desk, "lora_target: q,v\nlayers_to_transform: [1]\n"), "run");
    let config = fs::read_to_string(desk.path("run/adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!((&config["task_type"], &config["layers_pattern"]), (&json!("SEQ_2_SEQ_LM"), &json!("block")));
    let file = SafetensorsFile::open(&desk.path("run/adapter/adapter_model.safetensors")).unwrap();
    let mut modules: Vec<&str> = file.names().filter_map(|name| name.strip_suffix(".lora_A.weight")).collect();
    modules.sort_unstable();
    let expected = [
        "decoder.block.1.layer.0.SelfAttention.q",
        "decoder.block.1.layer.0.SelfAttention.v",
        "decoder.block.1.layer.1.EncDecAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.v",
        "encoder.block.1.layer.0.SelfAttention.q",
        "encoder.block.1.layer.0.SelfAttention.v",
    ];
    assert_eq!(modules, expected.map(|module| format!("base_model.model.{module}")));
}

/// Counted from the configuration alone, and as much as is really trained.
#[test]
fn an_estimate_knows_of_both_stacks() {
    let desk = desk("t5_v1_1");
    let room = Room { memory_bytes: u64::MAX, disk_bytes: u64::MAX };
    let of = |extra: &str| {
        let recipe = recipe(&desk, extra);
        estimate(&recipe, &model(&desk, None), room, None, &mut Vec::new()).unwrap()
    };
    let (lora, full) = (of("lora_rank: 2\n"), of("finetuning_type: full\n"));
    // Two blocks of an encoder, two of a decoder: of 24 × 16 in attention, and 24 × 20 beyond.
    let pairs = 4 * 4 * 2 * (24 + 16) + 2 * 4 * 2 * (24 + 16) + 4 * 3 * 2 * (24 + 20);
    assert_eq!(lora.trainable_parameters, pairs);
    let blocks = 6 * 4 * 24 * 16 + 4 * 3 * 24 * 20 + 10 * 24 + 2 * 24 + 2 * 8 * 4;
    assert_eq!(full.total_parameters, blocks + 2 * 1200 * 24);
    assert_eq!(full.trainable_parameters, full.total_parameters);
    // Sources count as targets do.
    assert!(lora.work.tokens > 24 * 6 * 12 && lora.work.largest_batch_tokens > 6 * 12, "{:?}", lora.work);
}

fn refused(desk: &Desk, extra: &str) -> Problem {
    let recipe = recipe(desk, extra);
    let teachers = BTreeMap::from([("llama".to_owned(), desk.path("llama"))]);
    let files = ModelFiles { teachers, ..model(desk, None) };
    let train = justtrain_train::run::train;
    let Failure { reason, problems } =
        train(&recipe, &files, &desk.path("refused"), false, &mut Vec::new(), &StopToken::default()).unwrap_err();
    assert_eq!(reason, FailureReason::RecipeInvalid, "{problems:?}");
    let room = Room { memory_bytes: u64::MAX, disk_bytes: u64::MAX };
    let planned = estimate(&recipe, &files, room, None, &mut Vec::new()).unwrap_err();
    assert_eq!(planned.problems, problems, "an estimate says it as well");
    problems.into_iter().next().unwrap()
}

#[test]
fn what_does_not_go_with_two_stacks_is_refused() {
    let desk = desk("t5");
    let llama = Desk::new();
    fs::rename(llama.path("model"), desk.path("llama")).unwrap();
    for (extra, key, found, expected) in [
        ("stage: pt\n", "stage", Some("pt"), Some("sft")),
        ("stage: cls\n", "stage", Some("cls"), Some("sft")),
        ("stage: rm\n", "stage", Some("rm"), Some("sft")),
        ("stage: dpo\n", "stage", Some("dpo"), Some("sft")),
        ("stage: kto\n", "stage", Some("kto"), Some("sft")),
        ("template: chatml\n", "template", Some("chatml"), Some("auto")),
        ("train_on_prompt: true\n", "train_on_prompt", Some("true"), None),
        ("lora_target: q,shared\n", "lora_target", Some("shared"), None),
        ("modules_to_save: [shared]\n", "modules_to_save", Some("shared"), None),
        ("modules_to_save: [lm_head]\n", "modules_to_save", Some("lm_head"), None),
        (
            "teacher: llama\n",
            "teacher",
            Some("a decoder alone"),
            Some("an encoder and a decoder, with the same marks at both ends of a text"),
        ),
    ] {
        let problem = refused(&desk, extra);
        assert_eq!(problem.key.as_deref(), Some(key), "{extra}: {problem}");
        assert_eq!((problem.found.as_deref(), problem.expected.as_deref()), (found, expected), "{extra}");
        assert!(!problem.message.zh.is_empty() && !problem.fix.zh.is_empty(), "{extra}");
    }
}
