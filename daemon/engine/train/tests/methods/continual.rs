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

/// Of what every stage has left, which is what it was held to or put beside.
#[test]
fn what_was_before_a_stage_is_there_again_when_it_is_resumed() {
    let full = "finetuning_type: full\ngradient_checkpointing: true\n";
    for (name, extra, result) in [
        ("lwf", "lwf_lambda: 2\nlora_dropout: 0.1\n", "adapter/adapter_model.safetensors"),
        ("lwf-full", &format!("{full}lwf_lambda: 1\nlwf_temperature: 3\n"), "model/model.safetensors"),
        ("lwf-bf16", &format!("{full}lwf_lambda: 1\nprecision: bf16\n"), "model/model.safetensors"),
        ("olora", "olora_lambda: 0.1\nolora_l2: 0.01\nuse_rslora: true\n", "adapter/adapter_model.safetensors"),
        (
            "both",
            "olora_lambda: 0.1\nlwf_lambda: 1\nquantization_bit: 8\nmax_grad_norm: 0\nload_best_model_at_end: true\n\
             eval_steps: 2\nrank_pattern: {q_proj: 2}\n",
            "adapter/adapter_model.safetensors",
        ),
    ] {
        let desk = Desk::new();
        let recipe = three_stages(&desk, extra);
        let whole = desk.losses(&recipe, "whole");
        let read = |run: &str| fs::read(desk.path(run).join(result)).unwrap();
        for cut in [1, 6, 7, 11] {
            let (stop, run) = (StopToken::default(), format!("cut-{cut}"));
            let mut first = StopAfter { step: cut, stop: stop.clone(), events: Vec::new() };
            desk.run(&recipe, &run, false, &mut first, &stop).unwrap();
            let mut rest = Vec::new();
            desk.run(&recipe, &run, true, &mut rest, &StopToken::default()).unwrap();
            assert_eq!([losses(&first.events), losses(&rest)].concat(), whole, "{name} cut at {cut}");
            assert!(read(&run) == read("whole"), "{name} cut at {cut}");
        }
    }
}

/// Held more strongly to what it said before, the model says more of the same.
#[test]
fn lwf_holds_the_loss_to_what_was_said_before() {
    let desk = Desk::new();
    let plain = desk.losses(&three_stages(&desk, ""), "plain");
    let nothing = desk.losses(&three_stages(&desk, "lwf_lambda: 0\n"), "nothing");
    assert!(result(&desk, "nothing") == result(&desk, "plain"));
    assert_eq!(nothing, plain);
    let held = desk.losses(&three_stages(&desk, "lwf_lambda: 5\n"), "held");
    // The first stage has nothing before it, and the second does not move before the warm-up is over.
    assert_eq!(held[..4], plain[..4]);
    let near = |step: usize| (held[step] / plain[step] - 1.0).abs() < 1e-5;
    assert!(near(4) && near(5) && held[6] > plain[6], "{held:?} {plain:?}");
    let moved = |run: &str| {
        let read = |stage: &str| {
            let path = desk.path(run).join(format!("stages/{stage}/adapter/adapter_model.safetensors"));
            SafetensorsFile::open(&path).unwrap()
        };
        let (before, after) = (read("1-first"), read("2-second"));
        let distance = |name: &str| -> f64 {
            let [before, after] = [&before, &after].map(|file| file.read_f32(name).unwrap());
            before.iter().zip(after).map(|(before, after)| f64::from(after - before).powi(2)).sum()
        };
        before.names().map(distance).sum::<f64>().sqrt()
    };
    assert!(moved("held") < moved("plain"), "{} {}", moved("held"), moved("plain"));
}

#[test]
fn each_stage_leaves_its_own_pair_beside_those_before() {
    let desk = Desk::new();
    let overlap = |lambda: f64| {
        let run = format!("run-{lambda}");
        let text = three_stages(&desk, &format!("olora_lambda: {lambda}\nlora_rank: 4\n")).text;
        let text = text.replace("max_steps: 4", "max_steps: 12");
        desk.losses(&RecipeSource { text, ..desk.recipe("") }, &run);
        let open = |stage: &str| {
            SafetensorsFile::open(&desk.path(&run).join(stage).join("adapter/adapter_model.safetensors")).unwrap()
        };
        let stages = ["stages/1-first", "stages/2-second", ""].map(open);
        let mut sum = 0.0;
        for name in stages[2].names() {
            let [first, second, third] = [0, 1, 2].map(|stage| stages[stage].read_f32(name).unwrap());
            let shape = stages[2].shape(name).unwrap().to_vec();
            if name.contains("lora_A") {
                assert_eq!(shape[0], 12);
                assert!(second[..first.len()] == first[..] && third[..second.len()] == second[..], "{name}");
                let (old, new) = third.split_at(8 * shape[1]);
                for (old, new) in old.chunks(shape[1]).flat_map(|old| new.chunks(shape[1]).map(move |new| (old, new))) {
                    sum += f64::from(old.iter().zip(new).map(|(old, new)| old * new).sum::<f32>().abs());
                }
            } else {
                assert_eq!(shape[1], 12);
                let column = |matrix: &[f32], width: usize, at: usize| -> Vec<f32> {
                    matrix.iter().skip(at).step_by(width).copied().collect()
                };
                for at in 0..8 {
                    let before = if at < 4 { column(&first, 4, at) } else { column(&second, 8, at) };
                    assert_eq!(column(&third, 12, at), before, "{name}");
                }
                assert!(column(&third, 12, 8).iter().any(|value| *value != 0.0), "{name}");
            }
        }
        let config = fs::read_to_string(desk.path(&run).join("adapter/adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_u64()), (Some(12), Some(24)));
        sum
    };
    let (free, held) = (overlap(0.0), overlap(0.5));
    assert!(held < 0.5 * free, "{held} {free}");
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
        ("lwf_lambda: 1\n".to_owned(), "lwf_lambda"),
        ("olora_lambda: 1\n".to_owned(), "olora_lambda"),
        (format!("lwf_lambda: 1\nstage: dpo\n{two}"), "lwf_lambda"),
        (format!("lwf_temperature: 1\n{two}"), "lwf_temperature"),
        (format!("olora_l2: 1\n{two}"), "olora_l2"),
        (format!("olora_lambda: 1\nuse_dora: true\n{two}"), "use_dora"),
        (format!("olora_lambda: 1\nkeep_optimizer_state: true\n{two}"), "keep_optimizer_state"),
        (format!("olora_lambda: 1\nbias: all\n{two}"), "bias"),
        (format!("olora_lambda: 1\nmodules_to_save: [lm_head]\n{two}"), "modules_to_save"),
        (format!("olora_lambda: 1\newc_lambda: 1\n{two}"), "ewc_lambda"),
        (format!("olora_lambda: 1\npissa_init: true\n{two}"), "stages.1.pissa_init"),
        ("stages:\n- name: a\n  olora_lambda: 1\n- name: b\n".to_owned(), "stages.2.olora_lambda"),
    ] {
        let problems = Recipe::parse(&desk.recipe(&extra)).unwrap_err();
        assert_eq!(problems[0].key.as_deref(), Some(key), "{extra}: {problems:?}");
        assert!(problems[0].line.is_some() && !problems[0].fix.zh.is_empty(), "{extra}");
    }
    let problems = Recipe::parse(&desk.full_recipe(&format!("olora_lambda: 1\n{two}"))).unwrap_err();
    assert_eq!(problems[0].key.as_deref(), Some("olora_lambda"));
    // Whether rows are held out is known once they are read, before the first step.
    let recipe = three_stages(&desk, "forgetting_report: true\n");
    let recipe = RecipeSource { text: recipe.text.replace("val_size: 4", "val_size: 0"), ..recipe };
    let mut events = Vec::new();
    let failure = desk.run(&recipe, "run", false, &mut events, &StopToken::default()).unwrap_err();
    assert_eq!(failure.problems[0].key.as_deref(), Some("forgetting_report"));
    assert!(losses(&events).is_empty());
}
