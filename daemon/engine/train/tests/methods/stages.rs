//! Several stages in one run: what is handed on, what a resume goes on with, and what is refused.

use std::fs;
use std::path::Path;

use justtrain_train::StopToken;
use justtrain_train::estimate::estimate;
use justtrain_train::recipe::Recipe;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::{Event, ModelFiles, Outcome, RecipeSource, Room, StageOfJob};

use crate::desk::{Desk, StopAfter, losses};

/// Supervised, then on pairs.
fn two_stages(desk: &Desk, extra: &str) -> RecipeSource {
    let pair = |i: usize| format!(r#"{{"prompt":"{i}+1","chosen":"is {}","rejected":"no"}}"#, i + 1);
    fs::write(desk.path("pairs.jsonl"), (0..16).map(pair).collect::<Vec<_>>().join("\n")).unwrap();
    let stages = "stages:\n- name: answers\n  num_train_epochs: 1\n- name: taste\n  stage: dpo\n  dataset: pairs.jsonl\n  learning_rate: 0.003\n  max_steps: 4\n";
    RecipeSource { text: format!("{}{extra}{stages}", desk.recipe("").text), ..desk.recipe("") }
}

fn trained(desk: &Desk, recipe: &RecipeSource, run: &str) -> (Vec<Event>, Outcome) {
    let mut events = Vec::new();
    let outcome = desk.run(recipe, run, false, &mut events, &StopToken::default()).unwrap();
    (events, outcome)
}

fn numbers(path: &Path, name: &str) -> Vec<f32> {
    SafetensorsFile::open(path).unwrap().read_f32(name).unwrap()
}

#[test]
fn steps_are_counted_through_and_the_weights_are_handed_on() {
    let desk = Desk::new();
    let without_dropout = |text: String| text.replace("lora_dropout: 0.1", "lora_dropout: 0");
    let recipe = two_stages(&desk, "");
    let recipe = RecipeSource { text: without_dropout(recipe.text), ..recipe };
    let (events, outcome) = trained(&desk, &recipe, "run");
    let steps: Vec<(u64, u64, StageOfJob)> = events
        .iter()
        .filter_map(|event| match event {
            Event::Step { step, total_steps, stage, .. } => Some((*step, *total_steps, stage.clone().unwrap())),
            _ => None,
        })
        .collect();
    // Five steps an epoch of twenty rows, then four.
    let stage = |step: u64| {
        let (number, name) = if step <= 5 { (1, "answers") } else { (2, "taste") };
        StageOfJob { name: name.to_owned(), number, count: 2 }
    };
    assert_eq!(steps, (1..=9).map(|step| (step, 9, stage(step))).collect::<Vec<_>>());
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Started { .. })).count(), 1);
    let told = |name: &str| {
        events
            .iter()
            .any(|event| matches!(event, Event::Log { text, .. } if text.en.contains(name) && !text.zh.is_empty()))
    };
    assert!(told("stage 1 of 2, \"answers\": 5 steps") && told("stage 2 of 2, \"taste\": 4 steps"));
    let Outcome::Trained { result, stopped: false } = outcome else { panic!() };
    assert_eq!((result.steps, result.adapter), (9, desk.path("run/adapter")));
    assert!(result.rewards.is_some());

    // A policy that is the reference: the first loss of the second stage is ln 2, whatever the first stage has learnt.
    let losses = losses(&events);
    assert!((losses[5] - std::f64::consts::LN_2).abs() < 1e-5, "{losses:?}");
    // The second stage by itself, from the first one's adapter, is the same to the last bit.
    let first = desk.path("run/stages/1-answers/adapter");
    let alone = format!(
        "{}stage: dpo\nadapter_name_or_path: {}\n",
        without_dropout(desk.recipe("").text)
            .replace("data.jsonl", "pairs.jsonl")
            .replace("0.01", "0.003")
            .replace("num_train_epochs: 2", "max_steps: 4"),
        first.display()
    );
    trained(&desk, &RecipeSource { text: alone, ..desk.recipe("") }, "alone");
    let weights = |run: &str| fs::read(desk.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights("run") == weights("alone"));
    assert!(!desk.path("run/stages/1-answers/checkpoints").exists());
}

#[test]
fn a_run_is_resumed_in_the_stage_where_it_stopped() {
    let desk = Desk::new();
    let recipe = two_stages(&desk, "");
    let whole = losses(&trained(&desk, &recipe, "whole").0);
    let result = |run: &str| fs::read(desk.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    // In the first stage, at its end, at the second's first step, and later.
    for cut in [2, 5, 6, 8] {
        let (stop, run) = (StopToken::default(), format!("cut-{cut}"));
        let mut first = StopAfter { step: cut, stop: stop.clone(), events: Vec::new() };
        let outcome = desk.run(&recipe, &run, false, &mut first, &stop).unwrap();
        let Outcome::Trained { stopped: true, result: so_far } = outcome else { panic!("cut at {cut}") };
        assert!(so_far.steps >= cut.min(5), "cut at {cut}: {so_far:?}");
        let mut rest = Vec::new();
        desk.run(&recipe, &run, true, &mut rest, &StopToken::default()).unwrap();
        assert_eq!([losses(&first.events), losses(&rest)].concat(), whole, "cut at {cut}");
        assert!(result(&run) == result("whole"), "cut at {cut}");
    }
}

/// The head alone, then everything: the backbone is untouched until its stage.
#[test]
fn weights_are_handed_on_as_a_model() {
    let desk = Desk::new();
    let stages = "stages:\n- name: head\n  finetuning_type: freeze\n  freeze_trainable_layers: 0\n  freeze_extra_modules: norm\n  max_steps: 3\n- name: all\n  finetuning_type: full\n  max_steps: 2\n";
    let text = format!(
        "model_name_or_path: tiny\ndataset: data.jsonl\nval_size: 4\ncutoff_len: 48\nlearning_rate: 0.002\nsave_steps: 2\n{stages}"
    );
    let (events, outcome) = trained(&desk, &RecipeSource { text, ..desk.recipe("") }, "run");
    assert_eq!(losses(&events).len(), 5);
    assert!(matches!(outcome, Outcome::Trained { result, .. } if result.adapter == desk.path("run/model")));
    let layer = "model.layers.0.mlp.up_proj.weight";
    let base = numbers(&desk.path("model/model.safetensors"), layer);
    assert_eq!(numbers(&desk.path("run/stages/1-head/model/model.safetensors"), layer), base);
    assert_ne!(numbers(&desk.path("run/model/model.safetensors"), layer), base);
}

#[test]
fn what_stages_cannot_share_is_refused_where_it_stands() {
    let desk = Desk::new();
    for (stages, line, key) in [
        ("stages: twice\n", 12, "stages"),
        ("stages:\n- sft\n", 13, "stages.1"),
        ("stages:\n- name: 1\n", 13, "stages.1.name"),
        ("stages:\n- name: a\n- finetuning_type: full\n", 14, "stages.2.finetuning_type"),
        ("stages:\n- name: a\n- name: b\n  lora_rank: 8\n", 14, "stages.2.lora_rank"),
        ("stages:\n- name: a\n  device: cpu\n", 14, "stages.1.device"),
        ("stages:\n- name: a\n  base_model: other\n", 14, "stages.1.model_name_or_path"),
        ("stages:\n- name: a\n  stages: []\n", 14, "stages.1.stages"),
        ("stages:\n- stage: rm\n- name: b\n", 13, "stages.1.stage"),
        ("stages:\n- name: a\n  learning_rat: 1\n", 14, "learning_rat"),
        ("stages:\n- name: a\n  learning_rate: fast\n", 14, "learning_rate"),
    ] {
        let problems = Recipe::parse(&desk.recipe(stages)).unwrap_err();
        let [problem] = problems.as_slice() else { panic!("{stages}: {problems:?}") };
        assert_eq!((problem.line, problem.key.as_deref()), (Some(line), Some(key)), "{stages}: {problem}");
        assert!(!problem.fix.en.is_empty() && !problem.fix.zh.is_empty(), "{stages}");
    }
    // A mistake in the last stage's data is found before the first step.
    fs::write(desk.path("broken.jsonl"), "{\"prompt\":1}\n").unwrap();
    let recipe = desk.recipe("stages:\n- name: a\n- name: b\n  dataset: broken.jsonl\n");
    let mut events = Vec::new();
    desk.run(&recipe, "run", false, &mut events, &StopToken::default()).unwrap_err();
    assert!(losses(&events).is_empty());
}

#[test]
fn a_dry_run_adds_the_stages_up() {
    let desk = Desk::new();
    let model = ModelFiles { name: "tiny".into(), path: desk.path("model"), ..ModelFiles::default() };
    let room = Room { memory_bytes: 1 << 40, disk_bytes: 1 << 40 };
    let of = |recipe: &RecipeSource| estimate(recipe, &model, room, None, &mut Vec::new()).unwrap();
    let both = of(&two_stages(&desk, ""));
    let answers = of(&RecipeSource { text: desk.recipe("").text.replace("epochs: 2", "epochs: 1"), ..desk.recipe("") });
    assert_eq!(both.work.steps, answers.work.steps + 4);
    assert!(both.work.tokens > answers.work.tokens && both.disk.result == 2 * answers.disk.result);
    assert!(both.memory.unwrap().total() >= answers.memory.unwrap().total());
}
