//! `keep_optimizer_state`: two stages are one run that was never cut in two.

use std::fs;

use justtrain_train::StopToken;
use justtrain_train::recipe::Recipe;
use justtrain_worker_api::{Event, Problem, RecipeSource};

use crate::desk::{Desk, losses};

/// One row, so that every step learns the same, and a rate that does not change: only what the optimiser remembers tells
/// one step from another.
fn one_row(desk: &Desk, text: &str) -> RecipeSource {
    fs::write(desk.path("row.jsonl"), r#"{"prompt":"2+3","completion":"is 5!"}"#).unwrap();
    let text = format!(
        "model_name_or_path: tiny\ndataset: row.jsonl\nval_size: 0\ncutoff_len: 48\nlearning_rate: 0.003\nsave_steps: 1\n\
         lr_scheduler_type: constant\ngradient_accumulation_steps: 1\nprecision: fp32\n{text}"
    );
    RecipeSource { text, ..desk.recipe("") }
}

const HALVES: &str =
    "stages:\n- {name: first, max_steps: 3}\n- {name: second, max_steps: 4, keep_optimizer_state: true}\n";

/// Steps of a run, and the bytes of what it ends with.
fn trained(desk: &Desk, recipe: &RecipeSource, run: &str) -> (Vec<f64>, Vec<u8>) {
    let losses = desk.losses(recipe, run);
    let adapter = desk.path(run).join("adapter/adapter_model.safetensors");
    let weights = fs::read(adapter).or_else(|_| fs::read(desk.path(run).join("model/model.safetensors")));
    (losses, weights.unwrap())
}

#[test]
fn two_stages_with_every_optimiser_are_one_run() {
    let lora = "lora_rank: 4\n";
    // With 8 bits: tables and matrices of this rank are large enough for them.
    let full = "finetuning_type: full\n";
    for (method, optim) in [
        (lora, "adamw"),
        (full, "adamw"),
        (full, "adamw_8bit"),
        (full, "adafactor"),
        (lora, "lion"),
        (lora, "sgd\nmomentum: 0.9"),
        (full, "muon"),
        (full, "galore_adamw\ngalore_rank: 4\ngalore_update_interval: 5"),
    ] {
        let desk = Desk::new();
        let of = |rest: &str| one_row(&desk, &format!("{method}optim: {optim}\n{rest}"));
        let whole = trained(&desk, &of("max_steps: 7\n"), "whole");
        assert!(whole.0[6] < whole.0[0], "{optim}: {:?}", whole.0);
        assert!(trained(&desk, &of(HALVES), "kept") == whole, "{method}{optim}");
        // The memory itself goes with the stage that took it; the small record of steps stays.
        let left = |file: &str| desk.path("kept/stages/1-first").join(file).exists();
        assert!(!left("optimizer.safetensors") && left("optimizer.json"), "{optim}");
        let anew = trained(&desk, &of(&HALVES.replace("true", "false")), "anew");
        assert!(anew.0[..4] == whole.0[..4] && anew.1 != whole.1, "{method}{optim}");
        assert!(!desk.path("anew/stages/1-first/optimizer.json").exists());
    }
}

/// What joins in the second stage starts at zero, as it does in one run that unfreezes it then.
#[test]
fn what_is_newly_trained_starts_at_zero() {
    let desk = Desk::new();
    let stages = "stages:\n- name: head\n  finetuning_type: freeze\n  freeze_trainable_layers: 0\n  freeze_extra_modules: norm,embed_tokens\n  max_steps: 3\n\
                  - name: all\n  finetuning_type: full\n  max_steps: 4\n  keep_optimizer_state: true\n";
    let one = "finetuning_type: full\nunfreeze_schedule: {head: 0, all: 3}\nlr_decay: 1\nmax_steps: 7\n";
    let mut events = Vec::new();
    let recipe = one_row(&desk, stages);
    desk.run(&recipe, "stages", false, &mut events, &StopToken::default()).unwrap();
    let told = events.iter().any(
        |event| matches!(event, Event::Log { text, .. } if text.en.contains("remembers of 2 of 29 tensors") && !text.zh.is_empty()),
    );
    assert!(told, "{events:?}");
    let model = |run: &str| fs::read(desk.path(run).join("model/model.safetensors")).unwrap();
    assert_eq!(losses(&events), desk.losses(&one_row(&desk, one), "one"));
    assert!(model("stages") == model("one"));
}

#[test]
fn a_stage_that_goes_on_with_memory_resumes_to_the_last_bit() {
    let desk = Desk::new();
    // Three stages, the last two of which go on; the middle one freezes again, so that a memory is left out on the way.
    let stages = "finetuning_type: full\nkeep_optimizer_state: true\nval_size: 4\ndataset: data.jsonl\nper_device_train_batch_size: 2\n\
                  stages:\n- {name: a, max_steps: 2}\n- {name: b, max_steps: 2, finetuning_type: freeze, freeze_trainable_layers: 1}\n- {name: c, max_steps: 3}\n";
    let recipe = one_row(&desk, "");
    let text = recipe.text.replace("dataset: row.jsonl\nval_size: 0\n", "").replace("save_steps: 1", "save_steps: 2");
    let recipe = RecipeSource { text: format!("{text}{stages}"), ..recipe };
    let whole = trained(&desk, &recipe, "whole");
    for cut in 1..=6 {
        let (stop, run) = (StopToken::default(), format!("cut-{cut}"));
        let mut first = crate::desk::StopAfter { step: cut, stop: stop.clone(), events: Vec::new() };
        desk.run(&recipe, &run, false, &mut first, &stop).unwrap();
        let mut rest = Vec::new();
        desk.run(&recipe, &run, true, &mut rest, &StopToken::default()).unwrap();
        assert_eq!([losses(&first.events), losses(&rest)].concat(), whole.0, "cut at {cut}");
        assert!(fs::read(desk.path(&run).join("model/model.safetensors")).unwrap() == whole.1, "cut at {cut}");
    }
}

/// A mean of weights may begin in the stage that goes on.
#[test]
fn a_running_mean_may_begin_with_the_kept_state() {
    let desk = Desk::new();
    let stages = HALVES.replace("keep_optimizer_state: true", "keep_optimizer_state: true, ema_decay: 0.5");
    let with_mean = trained(&desk, &one_row(&desk, &stages), "mean");
    let without = trained(&desk, &one_row(&desk, HALVES), "plain");
    assert!(with_mean.0 == without.0 && with_mean.1 != without.1);
}

#[test]
fn a_state_that_does_not_fit_is_refused_before_the_run() {
    let desk = Desk::new();
    let of = |above: &str, first: &str, second: &str| {
        let stages = format!("stages:\n- {{name: a{first}}}\n- {{name: b, keep_optimizer_state: true{second}}}\n");
        one_row(&desk, &format!("{above}{stages}"))
    };
    let held_out =
        |source: RecipeSource| RecipeSource { text: source.text.replace("val_size: 0", "val_size: 1"), ..source };
    for (recipe, found, fix) in [
        (of("", "", ", optim: lion"), "lion", "write optim: adamw"),
        (of("", ", optim: adamw_8bit", ""), "adamw", "write optim: adamw_8bit"),
        (of("finetuning_type: full\noptim: galore_adamw\n", "", ", galore_rank: 4"), "4", "write galore_rank: 16"),
        (of("", ", ema_decay: 0.9", ""), "ema_decay in the stage before", "remove ema_decay"),
        (
            held_out(of("", ", load_best_model_at_end: true", "")),
            "load_best_model_at_end in the stage before",
            "remove load_best_model_at_end",
        ),
    ] {
        let problems = Recipe::parse(&recipe).unwrap_err();
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        let Problem { key, line, message, .. } = problem;
        assert_eq!(key.as_deref(), Some("stages.2.keep_optimizer_state"));
        assert_eq!(problem.found.as_deref(), Some(found));
        assert!(line.is_some() && problem.fix.en.starts_with(fix) && problem.fix.zh.contains("keep_optimizer_state"));
        assert!(!message.en.is_empty() && !message.zh.is_empty());
    }
    let problems = Recipe::parse(&one_row(&desk, "keep_optimizer_state: true\n")).unwrap_err();
    assert_eq!((problems.len(), problems[0].key.as_deref()), (1, Some("keep_optimizer_state")));
    // Above the stages it is of all but the first.
    Recipe::parse(&one_row(&desk, &format!("keep_optimizer_state: true\n{HALVES}"))).unwrap();
}

#[test]
fn a_state_that_is_gone_is_named() {
    let desk = Desk::new();
    let recipe = one_row(&desk, HALVES);
    trained(&desk, &recipe, "run");
    for folder in ["adapter", "checkpoints"] {
        fs::remove_dir_all(desk.path("run").join(folder)).unwrap();
    }
    let failure = desk.run(&recipe, "run", true, &mut Vec::new(), &StopToken::default()).unwrap_err();
    let problem = &failure.problems[0];
    assert!(problem.file.as_deref().unwrap().ends_with("1-first/optimizer.safetensors"), "{problem}");
    assert!(problem.found.is_some() && !problem.fix.zh.is_empty());
}
