//! Any combination of methods trains, and is resumed to the last bit wherever it stops; or it is refused before anything is
//! done, by naming a line of the recipe.

use std::fs;

use justtrain_model::kernels::random;
use justtrain_train::StopToken;
use justtrain_worker_api::{FailureReason, Outcome, RecipeSource};

use crate::desk::{Desk, StopAfter, judged_rows, losses};

/// Of each group one choice is made; the empty one is what a recipe does by itself.
const GROUPS: [&[&str]; 16] = [
    &["", "finetuning_type: full", "finetuning_type: freeze\nfreeze_trainable_layers: 1", "layers_to_transform: [1]"],
    &["", "use_rslora: true", "use_dora: true", "pissa_init: true", "loftq_init: true", "bias: lora_only"],
    &["", "modules_to_save: [lm_head]", "loraplus_lr_ratio: 8", "rank_pattern: {q_proj: 2}", "lr_decay: 2"],
    &["", "quantization_bit: 4", "quantization_bit: 8"],
    &["", "precision: fp32", "precision: bf16", "precision: fp16"],
    &["", "optim: adamw_8bit", "optim: adafactor", "optim: lion", "optim: sgd", "optim: muon", "optim: galore_adamw"],
    &[
        "",
        "lr_scheduler_type: linear",
        "lr_scheduler_type: cosine_with_restarts",
        "lr_scheduler_type: reduce_lr_on_plateau",
    ],
    &["", "stage: dpo", "stage: dpo\npref_loss: orpo", "stage: dpo\npref_loss: simpo", "stage: kto", "stage: rm"],
    &["", "attention_dropout: 0.1", "resid_pdrop: 0.1", "neftune_noise_alpha: 5", "rdrop_alpha: 1"],
    &["", "label_smoothing_factor: 0.1", "l2sp_alpha: 0.1", "mixout_p: 0.2", "ema_decay: 0.9"],
    &["", "teacher: tiny", "teacher: tiny\nkd_direction: reverse\nkd_temperature: 2", "teacher: tiny\nkd_alpha: 1"],
    &["", "gradient_checkpointing: true"],
    &["", "packing: true", "max_grad_norm: 0", "gradient_accumulation_steps: 1"],
    &["", "early_stopping_steps: 2\neval_steps: 1", "load_best_model_at_end: true\neval_steps: 2\nsave_steps: 2"],
    &[
        "",
        "stages: [{max_steps: 3}, {max_steps: 2}]",
        "keep_optimizer_state: true\nstages: [{max_steps: 3}, {max_steps: 2}]",
    ],
    &["", "lora_target: [embed_tokens, lm_head, q_proj]", "lora_target: lm_head", "lora_target: embed_tokens"],
];
const RECIPES: u64 = 60;
const STEPS: u64 = 5;

/// Half of the choices are the plain ones, so that not every recipe is refused for something.
fn recipe_of(desk: &Desk, seed: u64) -> (RecipeSource, u64) {
    let mut place = 0;
    let mut number = |below: usize| {
        place += 1;
        random::at(seed, place) as usize % below
    };
    let chosen = GROUPS.map(|group| if number(2) == 0 { "" } else { group[number(group.len())] });
    let cut = 1 + number(STEPS as usize - 1) as u64;
    let mut keys: Vec<(&str, String)> = Vec::new();
    let plain = format!(
        "model_name_or_path: tiny\ndataset: data.jsonl\nval_size: 4\ncutoff_len: 48\nlora_rank: 4\nlearning_rate: 0.002\n\
         max_steps: {STEPS}\nsave_steps: 3\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 2\nseed: {seed}"
    );
    for line in plain.lines().chain(chosen.iter().flat_map(|choice| choice.lines())) {
        let (key, value) = line.split_once(": ").unwrap();
        keys.retain(|(other, _)| *other != key);
        keys.push((key, value.to_owned()));
    }
    // A rank is of an adapter.
    if keys.iter().any(|(key, value)| *key == "finetuning_type" && value != "lora") {
        keys.retain(|(key, _)| *key != "lora_rank");
    }
    let text = keys.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    (RecipeSource { text, ..desk.recipe("") }, cut)
}

#[test]
fn any_recipe_is_resumed_to_the_last_bit_or_refused_by_a_line() {
    let (mut trained, mut refused) = (0, 0);
    for seed in 0..RECIPES {
        let desk = Desk::new();
        let (recipe, cut) = recipe_of(&desk, seed);
        if let Some(stage) = recipe.text.lines().find_map(|line| line.strip_prefix("stage: ")) {
            judged_rows(&desk, stage == "kto");
        }
        let run = |name: &str, resume: bool, stop_after: Option<u64>| {
            let stop = StopToken::default();
            let mut sink = StopAfter { step: stop_after.unwrap_or(u64::MAX), stop: stop.clone(), events: Vec::new() };
            let outcome = desk.run(&recipe, name, resume, &mut sink, &stop);
            outcome.map(|outcome| (outcome, losses(&sink.events)))
        };
        let (whole, whole_losses) = match run("whole", false, None) {
            Ok(done) => done,
            Err(failure) => {
                assert_eq!(failure.reason, FailureReason::RecipeInvalid, "{}\n{failure:?}", recipe.text);
                for problem in &failure.problems {
                    let key = problem.key.as_deref().unwrap_or_default();
                    let key =
                        ["stages.1.", "stages.2."].iter().find_map(|stage| key.strip_prefix(stage)).unwrap_or(key);
                    assert!(recipe.text.contains(&format!("{key}:")) && !key.is_empty(), "{}\n{problem}", recipe.text);
                    assert!(!problem.fix.en.is_empty() && !problem.fix.zh.is_empty(), "{}\n{problem}", recipe.text);
                }
                assert!(!desk.path("whole/checkpoints").exists(), "{}", recipe.text);
                refused += 1;
                continue;
            }
        };
        trained += 1;
        let Outcome::Trained { result, .. } = whole else { panic!("{}", recipe.text) };
        assert!(whole_losses.iter().all(|loss| loss.is_finite()), "{}\n{whole_losses:?}", recipe.text);
        let cut = cut.min(result.steps.saturating_sub(1)).max(1);
        let (_, first) = run("cut", false, Some(cut)).unwrap();
        let (rest_of, rest) = run("cut", true, None).unwrap();
        assert_eq!([first, rest].concat(), whole_losses, "cut at {cut}:\n{}", recipe.text);
        let Outcome::Trained { result: resumed, .. } = rest_of else { panic!("{}", recipe.text) };
        for file in fs::read_dir(&result.adapter).unwrap().map(|entry| entry.unwrap().file_name()) {
            let same = fs::read(result.adapter.join(&file)).unwrap() == fs::read(resumed.adapter.join(&file)).unwrap();
            assert!(same, "cut at {cut}, {}:\n{}", file.display(), recipe.text);
        }
    }
    assert!(trained >= RECIPES / 3 && refused > 0, "{trained} trained, {refused} refused");
}
