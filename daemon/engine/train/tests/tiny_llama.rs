//! Whole runs on a tiny model: resume equals uninterrupted to the last bit, packing and accumulation change nothing,
//! bad input is refused.

mod desk;

use std::fs;
use std::path::Path;

use justtrain_train::StopToken;
use justtrain_train::evaluate::evaluate;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::{
    DataFile, EvaluateOptions, Event, FailureReason, ModelFiles, Outcome, ProblemCode, RecipeSource, Rewards,
};

use desk::{Desk, StopAfter, judged_rows, losses};

#[test]
fn a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one() {
    let kinds = [
        "",
        "packing: true\n",
        "precision: bf16\n",
        // The scale falls at once, and then goes up and down around what overflows.
        "precision: fp16\ninitial_scale_power: 21\nloss_scale_window: 2\n",
        "quantization_bit: 4\n",
        "quantization_bit: 8\n",
        // No loss is a tenth better than the one before: the rate falls after every second validation.
        "lr_scheduler_type: reduce_lr_on_plateau\neval_steps: 1\n\
         lr_scheduler_kwargs: {patience: 1, threshold: 0.5, factor: 0.9}\n",
        "optim: sgd\nmomentum: 0.9\nloraplus_lr_ratio: 16\nlearning_rates: {q_proj: 0.02, 'layers\\.0\\.': 0.04}\n",
        "optim: muon\n",
        "ema_decay: 0.5\neval_steps: 1\n",
        "use_rslora: true\nrank_pattern: {down_proj: 6}\nalpha_pattern: {'layers\\.0\\..*': 4}\n",
        "use_dora: true\n",
        "use_dora: true\nquantization_bit: 4\ngradient_checkpointing: true\npacking: true\n",
        "pissa_init: true\n",
        "pissa_init: true\npissa_iter: -1\nquantization_bit: 4\nuse_rslora: true\nrank_pattern: {down_proj: 6}\n",
        "loftq_init: true\nquantization_bit: 4\n",
        "loftq_init: true\nloftq_iter: 3\nquantization_bit: 8\n",
        "modules_to_save: embed_tokens, input_layernorm\nlora_target: q_proj, down_proj\nmax_grad_norm: 0\n",
        "modules_to_save: [norm, up_proj, lm_head]\nquantization_bit: 4\npissa_init: true\ngradient_checkpointing: true\n",
    ];
    for extra in kinds {
        let desk = Desk::new();
        let recipe = desk.recipe(extra);
        let whole = desk.check_resume(&recipe, &[3], "adapter/adapter_model.safetensors");
        let lowest = whole.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(lowest < whole[0] * 0.95, "{extra}: {whole:?}");
    }
}

#[test]
fn a_resumed_full_run_has_the_losses_and_weights_of_an_uninterrupted_one() {
    // With the updates at once, and with sums that are clipped.
    let extras = [
        "optim: adamw\nmax_grad_norm: 0\n",
        "optim: adamw_8bit\ngradient_checkpointing: true\n",
        "optim: adafactor\nweight_decay: 0.1\n",
        "optim: lion\nlearning_rates: {embed_tokens: 0.001}\n",
        "optim: muon\nmax_grad_norm: 0\n",
        "optim: galore_adamw\ngalore_rank: 4\ngalore_update_interval: 2\nweight_decay: 0.1\n",
        "precision: bf16\ngradient_checkpointing: true\nmax_grad_norm: 0\n",
        "precision: fp16\nloss_scale_window: 2\nmax_grad_norm: 0\n",
    ];
    for extra in extras {
        let desk = Desk::new();
        let recipe = desk.full_recipe(extra);
        let whole = desk.check_resume(&recipe, &[3], "model/model.safetensors");
        let lowest = whole.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(lowest < whole[0] * 0.95, "{extra}: {whole:?}");
    }
}

/// The run's losses are those of the weights themselves; what it leaves is their mean, which is what was validated.
#[test]
fn a_run_with_a_mean_of_weights_ends_with_it() {
    let desk = Desk::new();
    let run = |extra: &str, run: &str| {
        let mut events = Vec::new();
        desk.run(&desk.full_recipe(extra), run, false, &mut events, &StopToken::default()).unwrap();
        let validated = events.iter().rev().find_map(|event| match event {
            Event::Evaluation { loss, .. } => Some(*loss),
            _ => None,
        });
        let weights = |folder: &str| {
            let file = SafetensorsFile::open(&desk.path(run).join(folder).join("model.safetensors")).unwrap();
            file.read_f32("model.norm.weight").unwrap()
        };
        (losses(&events), validated.unwrap(), weights("model"), weights("checkpoints/step-5/model"))
    };
    let (plain, plain_loss, plain_end, plain_saved) = run("", "plain");
    let (mean, mean_loss, mean_end, mean_saved) = run("ema_decay: 0.5\n", "mean");
    assert_eq!((&plain, &plain_end, &plain_saved), (&mean, &plain_saved, &mean_saved));
    assert_ne!(mean_end, mean_saved);
    assert_ne!(mean_loss, plain_loss);
    let tuned = ModelFiles { name: "tiny".into(), path: desk.path("mean/model"), ..ModelFiles::default() };
    let options = EvaluateOptions { max_samples: 0, max_new_tokens: 1 };
    let report = evaluate(&desk.full_recipe(""), &tuned, None, &options, &mut Vec::new()).unwrap();
    assert!((report.base.loss / mean_loss - 1.0).abs() < 1e-6, "{} {mean_loss}", report.base.loss);
}

/// Whatever the frozen weights became for the adapter's sake.
#[test]
fn what_a_run_leaves_is_what_it_validated_last() {
    for extra in [
        "",
        "use_dora: true\nuse_rslora: true\n",
        "pissa_init: true\n",
        "pissa_init: true\nquantization_bit: 4\n",
        "loftq_init: true\nquantization_bit: 4\n",
        "loftq_init: true\nloftq_iter: 3\nquantization_bit: 4\n",
        "modules_to_save: embed_tokens, norm\nquantization_bit: 4\nuse_dora: true\n",
    ] {
        let desk = Desk::new();
        let recipe = desk.recipe(extra);
        let mut events = Vec::new();
        let outcome = desk.run(&recipe, "run", false, &mut events, &StopToken::default()).unwrap();
        let Outcome::Trained { result, .. } = outcome else { panic!("not trained") };
        let adapter = Some(desk.path("run/adapter"));
        let model = ModelFiles { name: "tiny".into(), path: desk.path("model"), adapter, ..ModelFiles::default() };
        let options = EvaluateOptions { max_samples: 0, max_new_tokens: 1 };
        let report = evaluate(&recipe, &model, None, &options, &mut Vec::new()).unwrap();
        let (validated, evaluated) = (result.validation_loss.unwrap(), report.tuned.unwrap().loss);
        assert!((validated / evaluated - 1.0).abs() < 1e-9, "{extra}: {validated} {evaluated}");
        assert!(evaluated < report.base.loss * 0.95, "{extra}");
    }
}

/// PEFT's own adapter: what the run starts from, and its settings are what the run ends with.
#[test]
fn a_run_goes_on_with_an_adapter_that_is_there() {
    let desk = Desk::new();
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/fixtures/tiny-llama/adapter");
    let text = desk.recipe("").text.replace("lora_dropout: 0.1\n", "");
    let recipe = |folder: &Path| RecipeSource {
        text: format!("{text}adapter_name_or_path: {}\n", folder.display()),
        ..desk.recipe("")
    };
    let whole = desk.losses(&recipe(&adapter), "whole");
    let fresh = desk.losses(&RecipeSource { text: text.clone(), ..desk.recipe("") }, "fresh");
    assert_ne!(whole[0], fresh[0], "B of this adapter is not zero");
    let config = |folder: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
    };
    let (ours, peft) = (config(&desk.path("whole/adapter")), config(&adapter));
    assert_eq!((&ours["r"], &ours["lora_alpha"]), (&peft["r"], &peft["lora_alpha"]));

    // Where one run ended, another begins: the first loss is what an evaluation finds.
    let end = desk.path("whole/adapter");
    let next = RecipeSource {
        text: format!(
            "{}val_size: 0\nmax_steps: 1\ngradient_accumulation_steps: 24\n",
            recipe(&end).text.replace("val_size: 4\n", "").replace("gradient_accumulation_steps: 2\n", "")
        ),
        ..desk.recipe("")
    };
    let first = desk.losses(&next, "next")[0];
    let model =
        ModelFiles { name: "tiny".into(), path: desk.path("model"), adapter: Some(end), ..ModelFiles::default() };
    let data = justtrain_worker_api::DataFile { path: desk.path("data.jsonl"), format: None };
    let options = EvaluateOptions { max_samples: 0, max_new_tokens: 1 };
    let report = evaluate(&next, &model, Some(&data), &options, &mut Vec::new()).unwrap();
    assert!((first / report.tuned.unwrap().loss - 1.0).abs() < 1e-5);

    // Cut and resumed it is the same run.
    let stop = StopToken::default();
    let mut cut = StopAfter { step: 3, stop: stop.clone(), events: Vec::new() };
    desk.run(&recipe(&adapter), "cut", false, &mut cut, &stop).unwrap();
    let mut rest = Vec::new();
    desk.run(&recipe(&adapter), "cut", true, &mut rest, &StopToken::default()).unwrap();
    assert_eq!([losses(&cut.events), losses(&rest)].concat(), whole);
}

#[test]
fn what_the_model_does_not_have_is_not_trained_in_full() {
    let desk = Desk::new();
    for (written, key) in [("modules_to_save: wte", "modules_to_save"), ("bias: all", "bias")] {
        let recipe = desk.recipe(&format!("{written}\n"));
        let failure = desk.run(&recipe, "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
        assert_eq!((failure.reason, failure.problems[0].key.as_deref()), (FailureReason::RecipeInvalid, Some(key)));
    }
    let recipe = desk.recipe("pissa_init: true\nrank_pattern: {q_proj: 49}\n");
    let failure = desk.run(&recipe, "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
    assert_eq!(failure.problems[0].expected.as_deref(), Some("at most 48 for model.layers.0.self_attn.q_proj"));
}

#[test]
fn a_rank_for_no_layer_is_refused() {
    let desk = Desk::new();
    for key in ["rank_pattern", "alpha_pattern"] {
        let recipe = desk.recipe(&format!("lora_target: q_proj\n{key}: {{q_proj: 2, k_proj: 3}}\n"));
        let failure = desk.run(&recipe, "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
        assert_eq!(failure.reason, FailureReason::RecipeInvalid);
        assert_eq!(failure.problems[0].key, Some(format!("{key}.k_proj")));
    }
}

#[test]
fn a_learning_rate_for_no_parameter_is_refused() {
    let desk = Desk::new();
    let recipe = desk.recipe("learning_rates: {q_proj: 0.1, c_attn: 0.1}\n");
    let failure = desk.run(&recipe, "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
    assert_eq!(failure.reason, FailureReason::RecipeInvalid);
    let keys: Vec<_> = failure.problems.iter().map(|problem| problem.key.as_deref()).collect();
    assert_eq!(keys, [Some("learning_rates.c_attn")]);
}

/// The largest change of a parameter in one step of descent is its rate times its gradient.
#[test]
fn modules_learn_at_their_own_rates() {
    let desk = Desk::new();
    let change = |extra: &str, run: &str| {
        let recipe = desk.full_recipe(&format!("optim: sgd\nmax_steps: 1\nwarmup_steps: 0\nmax_grad_norm: 0\n{extra}"));
        desk.losses(&recipe, run);
        let read = |folder: &str, name: &str| {
            SafetensorsFile::open(&desk.path(folder).join("model.safetensors")).unwrap().read_f32(name).unwrap()
        };
        ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"].map(|name| {
            let (before, after) = (read("model", name), read(&format!("{run}/model"), name));
            before.iter().zip(after).fold(0.0f32, |largest, (before, after)| largest.max((after - before).abs()))
        })
    };
    let (alike, apart) = (change("", "alike"), change("learning_rates: {'layers\\.0\\.': 0.02}\n", "apart"));
    assert!((apart[0] / alike[0] - 10.0).abs() < 0.1, "{apart:?} {alike:?}");
    assert_eq!(apart[1], alike[1]);
}

#[test]
fn gradient_checkpointing_changes_no_loss() {
    let desk = Desk::new();
    let lora = [("lora", desk.recipe("")), ("dora", desk.recipe("use_dora: true\n"))];
    for (method, recipe) in lora.into_iter().chain([("full", desk.full_recipe("max_grad_norm: 0\n"))]) {
        let with = RecipeSource { text: format!("{}gradient_checkpointing: true\n", recipe.text), ..recipe.clone() };
        let losses = [(recipe, "without"), (with, "with")].map(|(recipe, run)| desk.losses(&recipe, run));
        assert_eq!(losses[0], losses[1], "{method}");
    }
}

/// A learning rate so small that rounding to nearest would leave nearly every matrix as it was.
#[test]
fn weights_in_16_bits_take_steps_smaller_than_their_last_bit() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let desk = Desk::new();
    let weights = |folder: &str| {
        let file = SafetensorsFile::open(&desk.path(folder).join("model.safetensors")).unwrap();
        file.read_f32(NAME).unwrap()
    };
    let start = weights("model");
    let moved = |precision: &str| {
        let recipe = desk.full_recipe(&format!("gradient_checkpointing: true\nprecision: {precision}\n"));
        let text = recipe.text.replace("learning_rate: 0.002", "learning_rate: 0.00002");
        desk.losses(&RecipeSource { text, ..recipe }, precision);
        let end = weights(&format!("{precision}/model"));
        end.iter().zip(&start).map(|(end, start)| f64::from(end - start)).collect::<Vec<_>>()
    };
    let (wide, narrow) = (moved("fp32"), moved("bf16"));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // How far along the right way the weights have gone: all of it, give or take what chance adds.
    let share = dot(&narrow, &wide) / dot(&wide, &wide);
    assert!((share - 1.0).abs() < 0.2, "{share}");
}

#[test]
fn a_full_run_leaves_a_whole_model_that_beats_its_base() {
    let desk = Desk::new();
    let recipe = desk.full_recipe("");
    desk.losses(&recipe, "run");
    let tuned = desk.path("run/model");
    let model = ModelFiles {
        name: "tiny".into(),
        path: desk.path("model"),
        adapter: Some(tuned.clone()),
        ..ModelFiles::default()
    };
    let options = EvaluateOptions { max_samples: 0, max_new_tokens: 4 };
    let report = evaluate(&recipe, &model, None, &options, &mut Vec::new()).unwrap();
    assert!(report.tuned.unwrap().loss < report.base.loss * 0.9);
    // It stands alone, with its tokenizer, and is the same model.
    let alone = ModelFiles { path: tuned, adapter: None, ..model.clone() };
    let same = evaluate(&recipe, &alone, None, &options, &mut Vec::new()).unwrap();
    let report = evaluate(&recipe, &model, None, &options, &mut Vec::new()).unwrap();
    assert_eq!(same.base, report.tuned.unwrap());
}

/// Beyond the rows that are shown, an answer ends where it leaves the reference; what was counted stays as it was.
#[test]
fn exact_matches_are_counted_in_rows_that_are_not_shown() {
    let desk = Desk::new();
    let model = ModelFiles { name: "tiny".into(), path: desk.path("model"), ..ModelFiles::default() };
    let options = EvaluateOptions { max_samples: 0, max_new_tokens: 6 };
    let evaluate = |rows: &[(&str, &str)]| {
        let line = |(prompt, completion): &(&str, &str)| {
            serde_json::json!({"prompt": prompt, "completion": completion}).to_string()
        };
        let path = desk.path("rows.jsonl");
        fs::write(&path, rows.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
        let data = DataFile { path, format: None };
        evaluate(&desk.recipe(""), &model, Some(&data), &options, &mut Vec::new()).unwrap()
    };
    let report = evaluate(&[("2+2", "x")]);
    let answer = report.examples[0].base.as_str();
    assert_eq!(answer.trim().chars().count(), 6, "{answer:?}");
    let (longer, other) = (format!("{answer}!"), format!("{}~", &answer[..5]));
    let shown = [("1+1", "no such answer"); 5];
    let hidden = [("2+2", answer), ("2+2", &longer), ("2+2", &other), ("2+2", answer)];
    assert_eq!(evaluate(&[&shown[..], &hidden].concat()).base.exact_match, 2.0 / 9.0);
}

#[test]
fn a_killed_run_goes_on_from_its_last_whole_checkpoint() {
    let desk = Desk::new();
    let recipe = desk.recipe("");
    let whole = desk.losses(&recipe, "run");
    // The newest checkpoint is half-written: what a kill or a bad disk leaves behind.
    let newest = desk.path("run").join(format!("checkpoints/step-{}", whole.len()));
    let weights = newest.join("adapter/adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    let mut events = Vec::new();
    desk.run(&recipe, "run", true, &mut events, &StopToken::default()).unwrap();
    let kept = (whole.len() - 1) / 3 * 3;
    assert_eq!(losses(&events), whole[kept..]);
    let warned = |event: &Event| matches!(event, Event::Log { text, .. } if text.en.contains("damaged") && text.zh.contains("损坏"));
    assert!(events.iter().any(warned));
}

#[test]
fn accumulation_and_packing_weigh_every_token_alike() {
    let desk = Desk::new();
    // All 20 rows in each step: one batch of 20, 10 of 2, or packs.
    let base = "lora_dropout: 0.0\nmax_steps: 3\nwarmup_steps: 0\n";
    let with = |batch: usize, accumulation: usize, extra: &str, run: &str| {
        let text = desk.recipe("").text.replace("lora_dropout: 0.1\n", "").replace(
            "per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\n",
            &format!(
                "per_device_train_batch_size: {batch}\ngradient_accumulation_steps: {accumulation}\n{base}{extra}"
            ),
        );
        desk.losses(&RecipeSource { text, ..desk.recipe("") }, run)
    };
    let together = with(20, 1, "", "a");
    for other in [with(2, 10, "", "b"), with(3, 7, "", "c"), with(50, 1, "packing: true\n", "d")] {
        for (got, want) in other.iter().zip(&together) {
            assert!((got / want - 1.0).abs() < 1e-4, "{other:?} {together:?}");
        }
    }
}

#[test]
fn a_changed_recipe_does_not_resume() {
    let desk = Desk::new();
    desk.losses(&desk.recipe(""), "run");
    let changed = desk.recipe("seed: 7\n");
    let failure = desk.run(&changed, "run", true, &mut Vec::new(), &StopToken::default()).unwrap_err();
    assert_eq!(failure.problems[0].code, ProblemCode::Checkpoint);
}

#[test]
fn only_so_many_checkpoints_are_kept() {
    let desk = Desk::new();
    desk.losses(&desk.recipe("save_total_limit: 2\n"), "run");
    let mut names: Vec<_> = fs::read_dir(desk.path("run/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["step-10", "step-9"]);
}

#[test]
fn bad_rows_and_cut_answers_are_refused_with_their_place() {
    let desk = Desk::new();
    let refuse =
        |extra: &str| desk.run(&desk.recipe(extra), "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
    let failure = refuse("cutoff_len_x: 3\n");
    assert_eq!((failure.reason, failure.problems[0].code), (FailureReason::RecipeInvalid, ProblemCode::UnknownKey));
    let text = desk.recipe("").text.replace("cutoff_len: 48", "cutoff_len: 3");
    let recipe = RecipeSource { text, ..desk.recipe("") };
    let failure = desk.run(&recipe, "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
    assert_eq!((failure.reason, failure.problems[0].code), (FailureReason::DataInvalid, ProblemCode::AnswerCut));
    let rows = fs::read_to_string(desk.path("data.jsonl")).unwrap() + "\n{\"prompt\":\"x\",\"completion\":\"\"}";
    fs::write(desk.path("data.jsonl"), rows).unwrap();
    let failure = refuse("");
    assert_eq!((failure.reason, failure.problems[0].code), (FailureReason::DataInvalid, ProblemCode::NoAnswer));
    assert_eq!(failure.problems[0].row, Some(25));
}

fn all_rewards(events: &[Event]) -> Vec<Rewards> {
    events.iter().filter_map(|event| if let Event::Step { rewards, .. } = event { *rewards } else { None }).collect()
}

#[test]
fn a_resumed_preference_run_has_the_losses_and_weights_of_an_uninterrupted_one() {
    let full = "lora_dropout: 0.0\nfinetuning_type: full\n";
    let kinds = [
        (false, "stage: dpo\n".to_owned()),
        (false, "stage: dpo\npacking: true\ndpo_label_smoothing: 0.1\npref_ftx: 0.5\n".to_owned()),
        (false, "stage: dpo\npref_loss: ipo\nquantization_bit: 4\ngradient_checkpointing: true\n".to_owned()),
        (false, "stage: dpo\npref_loss: orpo\n".to_owned()),
        (false, "stage: dpo\npref_loss: simpo\npref_beta: 2\n".to_owned()),
        (false, "stage: dpo\npref_loss: hinge\n".to_owned()),
        (false, "stage: dpo\npref_loss: kto_pair\n".to_owned()),
        (true, "stage: kto\n".to_owned()),
        (true, "stage: kto\npacking: true\nquantization_bit: 8\nema_decay: 0.5\n".to_owned()),
        (false, "stage: rm\ngradient_checkpointing: true\nema_decay: 0.5\n".to_owned()),
        (false, format!("stage: rm\n{full}")),
        (false, format!("stage: dpo\n{full}")),
        (true, format!("stage: kto\nprecision: bf16\ngradient_checkpointing: true\nmax_grad_norm: 0\n{full}")),
    ];
    for (kto, extra) in kinds {
        let desk = Desk::new();
        judged_rows(&desk, kto);
        let mut text = desk.recipe(&extra).text;
        if extra.contains("full") {
            text = text.replace("lora_dropout: 0.1\n", "").replace("learning_rate: 0.01", "learning_rate: 0.002");
        }
        let recipe = RecipeSource { text, ..desk.recipe("") };
        let mut events = Vec::new();
        desk.run(&recipe, "whole", false, &mut events, &StopToken::default()).unwrap();
        let (whole, rewards) = (losses(&events), all_rewards(&events));
        let lowest = whole.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(lowest < whole[0] * 0.95, "{extra}: {whole:?}");
        assert_eq!(rewards.len(), whole.len(), "{extra}");
        let validated: Vec<Option<Rewards>> = events
            .iter()
            .filter_map(|event| if let Event::Evaluation { rewards, .. } = event { Some(*rewards) } else { None })
            .collect();
        let last = validated.last().unwrap().unwrap();
        // Of rated answers a few rows need not have both kinds.
        assert!(last.accuracy > 0.7 && last.chosen.unwrap_or(0.0) > last.rejected.unwrap_or(-1.0), "{extra}: {last:?}");
        let stop = StopToken::default();
        let mut first = StopAfter { step: 4, stop: stop.clone(), events: Vec::new() };
        desk.run(&recipe, "cut", false, &mut first, &stop).unwrap();
        let mut rest = Vec::new();
        desk.run(&recipe, "cut", true, &mut rest, &StopToken::default()).unwrap();
        assert_eq!([losses(&first.events), losses(&rest)].concat(), whole, "{extra}");
        assert_eq!([all_rewards(&first.events), all_rewards(&rest)].concat(), rewards, "{extra}");
        let file = if extra.contains("full") { "model/model.safetensors" } else { "adapter/adapter_model.safetensors" };
        let weights = |run: &str| fs::read(desk.path(run).join(file)).unwrap();
        assert_eq!(weights("cut"), weights("whole"), "{extra}");
    }
}

/// The new adapter changes nothing yet: chosen and rejected are as probable as the reference says, in any layout.
#[test]
fn the_first_step_of_dpo_has_no_rewards() {
    for extra in ["", "packing: true\n", "quantization_bit: 4\n", "finetuning_type: full\n"] {
        let desk = Desk::new();
        judged_rows(&desk, false);
        let text = desk.recipe(&format!("stage: dpo\n{extra}")).text.replace("lora_dropout: 0.1\n", "");
        let mut events = Vec::new();
        desk.run(&RecipeSource { text, ..desk.recipe("") }, "run", false, &mut events, &StopToken::default()).unwrap();
        let rewards = all_rewards(&events)[0];
        assert!(rewards.chosen.unwrap().abs() < 1e-4 && rewards.rejected.unwrap().abs() < 1e-4, "{rewards:?}");
        assert!((losses(&events)[0] - f64::ln(2.0)).abs() < 1e-4);
    }
}

#[test]
fn rows_of_another_stage_are_refused_with_the_stage_that_fits() {
    let desk = Desk::new();
    let refused = |extra: &str, fitting: &str| {
        let failure = desk.run(&desk.recipe(extra), "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
        assert_eq!(failure.reason, FailureReason::DataInvalid);
        let problem = &failure.problems[0];
        assert_eq!((problem.key.as_deref(), problem.row), (Some("stage"), Some(1)));
        assert!(problem.fix.en.contains(fitting) && problem.fix.zh.contains(fitting), "{problem}");
    };
    refused("stage: dpo\n", "stage: sft");
    judged_rows(&desk, false);
    refused("", "stage: dpo");
    refused("stage: kto\n", "stage: dpo");
    judged_rows(&desk, true);
    refused("stage: dpo\n", "stage: kto");
}

/// A reward model is loaded with its head, whichever way it was trained; and text can still be made with it.
#[test]
fn a_reward_model_is_validated_with_its_head() {
    let desk = Desk::new();
    judged_rows(&desk, false);
    for (extra, folder) in [("", "adapter"), ("finetuning_type: full\n", "model")] {
        let text = desk.recipe(&format!("stage: rm\n{extra}")).text;
        let text =
            if folder == "model" { text.replace("lora_dropout: 0.1\n", "").replace("0.01", "0.002") } else { text };
        let recipe = RecipeSource { text, ..desk.recipe("") };
        let mut events = Vec::new();
        desk.run(&recipe, folder, false, &mut events, &StopToken::default()).unwrap();
        let last = events.iter().rev().find_map(|event| match event {
            Event::Evaluation { rewards, perplexity, .. } => Some((*rewards, *perplexity)),
            _ => None,
        });
        let (validated, perplexity) = last.unwrap();
        assert_eq!(perplexity, 0.0);
        let adapter = Some(desk.path(folder).join(folder));
        let model = ModelFiles { name: "tiny".into(), path: desk.path("model"), adapter, ..ModelFiles::default() };
        let options = EvaluateOptions { max_samples: 0, max_new_tokens: 1 };
        let report = evaluate(&recipe, &model, None, &options, &mut Vec::new()).unwrap();
        let (found, validated) = (report.tuned.unwrap().rewards.unwrap(), validated.unwrap());
        assert_eq!((report.base.rewards, found.accuracy), (None, validated.accuracy));
        assert!((found.chosen.unwrap() - validated.chosen.unwrap()).abs() < 1e-4, "{found:?} {validated:?}");
    }
}

/// Validation of the tuned model beside the base: what it prefers, and text of the chosen answers.
#[test]
fn preferences_are_validated_against_the_base_model() {
    for (kto, stage) in [(false, "stage: dpo\n"), (true, "stage: kto\n")] {
        let desk = Desk::new();
        judged_rows(&desk, kto);
        let recipe = desk.recipe(stage);
        let mut events = Vec::new();
        desk.run(&recipe, "run", false, &mut events, &StopToken::default()).unwrap();
        let validated = events.iter().rev().find_map(|event| match event {
            Event::Evaluation { rewards, .. } => *rewards,
            _ => None,
        });
        let adapter = Some(desk.path("run/adapter"));
        let model = ModelFiles { name: "tiny".into(), path: desk.path("model"), adapter, ..ModelFiles::default() };
        let options = EvaluateOptions { max_samples: 0, max_new_tokens: 1 };
        let report = evaluate(&recipe, &model, None, &options, &mut Vec::new()).unwrap();
        let (found, validated) = (report.tuned.unwrap().rewards.unwrap(), validated.unwrap());
        assert!((found.chosen.unwrap() - validated.chosen.unwrap()).abs() < 1e-3, "{found:?} {validated:?}");
        assert!(report.rows <= 4 && report.base.rewards.is_none());
    }
}

/// A cut answer takes its pair with it.
#[test]
fn a_pair_of_which_one_answer_is_cut_is_left_out() {
    let desk = Desk::new();
    judged_rows(&desk, false);
    let rows = fs::read_to_string(desk.path("data.jsonl")).unwrap();
    let long = format!(r#"{{"prompt":"{}","chosen":"a","rejected":"b"}}"#, "x".repeat(60));
    fs::write(desk.path("data.jsonl"), format!("{rows}\n{long}")).unwrap();
    let mut events = Vec::new();
    let recipe = desk.recipe("stage: dpo\nmax_steps: 1\n");
    desk.run(&recipe, "run", false, &mut events, &StopToken::default()).unwrap();
    let counted = events.iter().find_map(|event| match event {
        Event::Started { train_rows, validation_rows, .. } => Some(train_rows + validation_rows),
        _ => None,
    });
    assert_eq!(counted, Some(24));
}
