//! Stages that do something against forgetting, and the report of what was forgotten.

use std::fs;

use justtrain_train::StopToken;
use justtrain_train::continual::ForgettingReport;
use justtrain_train::recipe::Recipe;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::{Event, RecipeSource};

use crate::desk::{Desk, StopAfter, losses};

fn write_rows(desk: &Desk) {
    let write = |name: &str, row: fn(usize) -> String| {
        fs::write(desk.path(name), (0..20).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    };
    write("first.jsonl", |i| format!(r#"{{"prompt":"{i}+1","completion":"is {}"}}"#, i + 1));
    write("second.jsonl", |i| format!(r#"{{"prompt":"say {i}","completion":"{}"}}"#, "ab".repeat(1 + i % 3)));
    write("third.jsonl", |i| format!(r#"{{"prompt":"{i}?","completion":"no {i}"}}"#));
}

fn three_stages(desk: &Desk, extra: &str) -> RecipeSource {
    write_rows(desk);
    let stages = ["first", "second", "third"].map(|name| format!("- name: {name}\n  dataset: {name}.jsonl\n")).concat();
    let text = format!(
        "model_name_or_path: tiny\nval_size: 4\ncutoff_len: 48\nlearning_rate: 0.01\nmax_steps: 4\nsave_steps: 2\n\
         per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\n{extra}stages:\n{stages}"
    );
    RecipeSource { text, ..desk.recipe("") }
}

fn result(desk: &Desk, run: &str) -> Vec<u8> {
    fs::read(desk.path(run).join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn a_resumed_run_equals_one_that_goes_through() {
    let desk = Desk::new();
    let recipe = three_stages(
        &desk,
        "forgetting_report: true\nreplay_ratio: 0.4\nreplay_buffer: 9\newc_lambda: 5\newc_gamma: 0.9\n",
    );
    let whole = desk.losses(&recipe, "whole");
    assert_eq!(whole.len(), 12);
    let report = |run: &str| fs::read_to_string(desk.path(run).join("forgetting.json")).unwrap();
    for cut in [2, 5, 8, 11] {
        let (stop, run) = (StopToken::default(), format!("cut-{cut}"));
        let mut first = StopAfter { step: cut, stop: stop.clone(), events: Vec::new() };
        desk.run(&recipe, &run, false, &mut first, &stop).unwrap();
        let mut rest = Vec::new();
        desk.run(&recipe, &run, true, &mut rest, &StopToken::default()).unwrap();
        assert_eq!([losses(&first.events), losses(&rest)].concat(), whole, "cut at {cut}");
        assert!(result(&desk, &run) == result(&desk, "whole"), "cut at {cut}");
        assert_eq!(report(&run), report("whole"), "cut at {cut}");
    }
}

#[test]
fn the_report_says_what_each_stage_was_before_and_after() {
    let desk = Desk::new();
    let mut events = Vec::new();
    let recipe = three_stages(&desk, "forgetting_report: true\n");
    desk.run(&recipe, "run", false, &mut events, &StopToken::default()).unwrap();
    let text = fs::read_to_string(desk.path("run/forgetting.json")).unwrap();
    let report: ForgettingReport = serde_json::from_str(&text).unwrap();
    assert_eq!(report.stages, ["first", "second", "third"]);
    assert!(report.matrix.iter().flatten().chain(&report.baseline).all(|share| (0.0..=1.0).contains(share)));
    // The tiny model knows nothing, and each stage learns some of its own.
    assert!((0..3).all(|stage| report.matrix[stage][stage] > report.baseline[stage]), "{report:?}");
    assert!(fs::read_to_string(desk.path("run/forgetting.svg")).unwrap().starts_with("<svg"));
    let said =
        |part: &str| events.iter().any(|event| matches!(event, Event::Log { text, .. } if text.en.starts_with(part)));
    assert!(said("after \"second\": first ") && said("average accuracy "));
}

#[test]
fn a_pull_of_nothing_is_no_pull() {
    let desk = Desk::new();
    desk.losses(&three_stages(&desk, ""), "plain");
    desk.losses(&three_stages(&desk, "ewc_lambda: 0\n"), "pulled");
    assert!(result(&desk, "pulled") == result(&desk, "plain"));
}

/// What mattered to the first stage moves less, the more strongly it is held.
#[test]
fn ewc_holds_what_mattered() {
    let desk = Desk::new();
    let moved = |extra: &str, run: &str| {
        let text = three_stages(&desk, extra).text.replace("learning_rate: 0.01", "learning_rate: 0.05");
        let text = format!("finetuning_type: full\noptim: sgd\nmax_grad_norm: 0\n{text}");
        desk.losses(&RecipeSource { text, ..desk.recipe("") }, run);
        let open = |path: &str| SafetensorsFile::open(&desk.path(path)).unwrap();
        let name = "model.layers.1.mlp.up_proj.weight";
        let fisher = open("measure/stages/1-first/fisher.safetensors").read_f32(&format!("fisher.{name}")).unwrap();
        let read = |path: String| open(&path).read_f32(name).unwrap();
        let before = read(format!("{run}/stages/1-first/model/model.safetensors"));
        let after = read(format!("{run}/stages/2-second/model/model.safetensors"));
        let pairs = before.iter().zip(&after).zip(&fisher);
        pairs.map(|((before, after), fisher)| f64::from(fisher * (after - before).powi(2))).sum::<f64>()
    };
    let weak = moved("ewc_lambda: 0\n", "measure");
    let strong = moved("ewc_lambda: 20\n", "strong");
    assert!(strong < 0.9 * weak, "{strong} {weak}");
}

#[test]
fn rows_of_earlier_stages_come_again() {
    let desk = Desk::new();
    let tokens = |extra: &str, run: &str| {
        let mut events = Vec::new();
        desk.run(&three_stages(&desk, extra), run, false, &mut events, &StopToken::default()).unwrap();
        let of_step = |event: &Event| if let Event::Step { tokens, .. } = event { Some(*tokens) } else { None };
        events.iter().filter_map(of_step).collect::<Vec<_>>()
    };
    let (plain, replayed) = (tokens("", "plain"), tokens("replay_ratio: 0.5\n", "replayed"));
    assert_eq!(plain.len(), replayed.len());
    // The first stage has none before it.
    assert_eq!(plain[..4], replayed[..4]);
    assert_ne!(plain[4..], replayed[4..]);
}

#[test]
fn what_it_does_not_go_together_with_is_refused() {
    let desk = Desk::new();
    let two = "stages:\n- name: a\n- name: b\n";
    for (extra, key) in [
        ("ewc_lambda: 1\n".to_owned(), "ewc_lambda"),
        ("replay_ratio: 0.5\n".to_owned(), "replay_ratio"),
        ("forgetting_report: true\n".to_owned(), "forgetting_report"),
        (format!("ewc_lambda: 1\nstage: dpo\n{two}"), "ewc_lambda"),
        (format!("replay_ratio: 1\n{two}"), "replay_ratio"),
    ] {
        let problems = Recipe::parse(&desk.recipe(&extra)).unwrap_err();
        assert_eq!(problems[0].key.as_deref(), Some(key), "{extra}: {problems:?}");
        assert!(problems[0].line.is_some() && !problems[0].fix.zh.is_empty(), "{extra}");
    }
    // Whether rows are held out is known once they are read, before the first step.
    let recipe = three_stages(&desk, "forgetting_report: true\n");
    let recipe = RecipeSource { text: recipe.text.replace("val_size: 4", "val_size: 0"), ..recipe };
    let mut events = Vec::new();
    let failure = desk.run(&recipe, "run", false, &mut events, &StopToken::default()).unwrap_err();
    assert_eq!(failure.problems[0].key.as_deref(), Some("forgetting_report"));
    assert!(losses(&events).is_empty());
}
