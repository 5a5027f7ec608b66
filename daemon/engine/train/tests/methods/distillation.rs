//! A teacher in whole runs: what is learnt from it, exact resume, and what is refused.

use std::collections::BTreeMap;
use std::fs;

use justtrain_train::StopToken;
use justtrain_train::estimate::estimate;
use justtrain_train::run::train;
use justtrain_worker_api::{Event, FailureReason, ModelFiles, Outcome, RecipeSource, Room};

use crate::desk::{Desk, StopAfter, losses};

/// A teacher is made by training every weight, so that it says something else than the model.
fn taught(desk: &Desk) -> ModelFiles {
    let outcome =
        desk.run(&desk.full_recipe("max_steps: 6\n"), "teacher", false, &mut Vec::new(), &StopToken::default());
    let Outcome::Trained { result, .. } = outcome.unwrap() else { panic!() };
    let teachers = BTreeMap::from([("large".to_owned(), result.adapter)]);
    ModelFiles { name: "tiny".into(), path: desk.path("model"), teachers, ..ModelFiles::default() }
}

fn run(desk: &Desk, model: &ModelFiles, recipe: &RecipeSource, name: &str) -> Vec<f64> {
    let mut events = Vec::new();
    train(recipe, model, &desk.path(name), false, &mut events, &StopToken::default()).unwrap();
    losses(&events)
}

#[test]
fn a_model_comes_nearer_to_its_teacher() {
    let desk = Desk::new();
    let model = taught(&desk);
    for extra in [
        "kd_alpha: 1\n",
        "kd_alpha: 1\nkd_direction: reverse\n",
        "kd_alpha: 1\nkd_temperature: 2\nmodules_to_save: [lm_head]\n",
        "kd_alpha: 1\nquantization_bit: 8\n",
        "kd_alpha: 1\nprecision: fp32\npacking: true\n",
    ] {
        let name = extra.replace([':', ' ', '\n', '[', ']'], "_");
        let recipe = desk.recipe(&format!("teacher: large\n{extra}"));
        let recipe = RecipeSource { text: recipe.text.replace("epochs: 2", "epochs: 8"), ..recipe };
        let losses = run(&desk, &model, &recipe, &name);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[losses.len() - 5..]));
        assert!(first > 0.0 && last < 0.7 * first, "{extra}: {first} {last}");
    }
}

/// A teacher that is the model has nothing to teach: the loss is the data's alone, in its share.
#[test]
fn a_teacher_that_is_the_model_leaves_the_share_of_the_data() {
    let desk = Desk::new();
    let teachers = BTreeMap::from([("itself".to_owned(), desk.path("model"))]);
    let model = ModelFiles { teachers, ..taught(&desk) };
    let without_dropout = |extra: &str| {
        let recipe = desk.recipe(&format!("max_steps: 1\nprecision: fp32\n{extra}"));
        RecipeSource { text: recipe.text.replace("lora_dropout: 0.1", "lora_dropout: 0"), ..recipe }
    };
    let alone = run(&desk, &model, &without_dropout(""), "alone")[0];
    let shared = run(&desk, &model, &without_dropout("teacher: itself\nkd_alpha: 0.25\n"), "shared")[0];
    assert!((shared - 0.75 * alone).abs() < 1e-5 * alone, "{shared} {alone}");
}

#[test]
fn a_run_with_a_teacher_is_resumed_to_the_last_bit() {
    let desk = Desk::new();
    let model = taught(&desk);
    for (name, recipe, result) in [
        ("lora", desk.recipe("teacher: large\nkd_temperature: 2\n"), "adapter/adapter_model.safetensors"),
        ("full", desk.full_recipe("teacher: large\nkd_direction: reverse\n"), "model/model.safetensors"),
    ] {
        let whole = run(&desk, &model, &recipe, name);
        let (stop, cut) = (StopToken::default(), desk.path(&format!("{name}-cut")));
        let mut first = StopAfter { step: 2, stop: stop.clone(), events: Vec::new() };
        train(&recipe, &model, &cut, false, &mut first, &stop).unwrap();
        let mut rest = Vec::new();
        train(&recipe, &model, &cut, true, &mut rest, &StopToken::default()).unwrap();
        assert_eq!([losses(&first.events), losses(&rest)].concat(), whole, "{name}");
        assert!(fs::read(cut.join(result)).unwrap() == fs::read(desk.path(name).join(result)).unwrap(), "{name}");
    }
}

/// A stage may have a teacher of its own.
#[test]
fn a_stage_may_have_a_teacher() {
    let desk = Desk::new();
    let model = taught(&desk);
    let recipe = desk.recipe("max_steps: 3\nstages:\n- name: alone\n- name: taught\n  teacher: large\n  kd_alpha: 1\n");
    let losses = run(&desk, &model, &recipe, "run");
    assert!(losses.len() == 6 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(losses[3] < losses[0], "a divergence is smaller than a cross-entropy: {losses:?}");
}

#[test]
fn other_tokens_and_missing_teachers_are_refused_before_the_first_step() {
    let desk = Desk::new();
    let other = desk.path("other");
    fs::create_dir(&other).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        fs::copy(desk.path("model").join(file), other.join(file)).unwrap();
    }
    let tokenizer = fs::read_to_string(desk.path("model/tokenizer.json")).unwrap();
    fs::write(other.join("tokenizer.json"), tokenizer.replace(r#""a":"#, r#""ä":"#)).unwrap();
    let teachers = BTreeMap::from([("other".to_owned(), other)]);
    let model = ModelFiles { name: "tiny".into(), path: desk.path("model"), teachers, ..ModelFiles::default() };
    for (extra, reason, found) in [
        ("teacher: other\n", FailureReason::RecipeInvalid, "\"ä\""),
        ("teacher: missing\n", FailureReason::ModelInvalid, "missing"),
        ("stages:\n- name: a\n- name: b\n  teacher: other\n", FailureReason::RecipeInvalid, "\"ä\""),
    ] {
        let mut events: Vec<Event> = Vec::new();
        let recipe = desk.recipe(extra);
        let failure = train(&recipe, &model, &desk.path("run"), false, &mut events, &StopToken::default()).unwrap_err();
        let problem = &failure.problems[0];
        assert_eq!((failure.reason, problem.key.as_deref()), (reason, Some("teacher")), "{extra}");
        assert_eq!(problem.found.as_deref(), Some(found), "{extra}");
        assert!(!problem.fix.zh.is_empty() && losses(&events).is_empty());
        let room = Room { memory_bytes: 1 << 40, disk_bytes: 1 << 40 };
        assert!(estimate(&recipe, &model, room, None, &mut Vec::new()).is_err(), "{extra}");
    }
}
