//! Groups that join late are as they were until then, to the last bit; a resumed run unfreezes where one that goes through
//! does.

use std::collections::BTreeSet;

use justtrain_train::StopToken;
use justtrain_worker_api::Event;

use crate::desk::Desk;
use crate::freezing::{changed, remembered};

const SCHEDULE: &str =
    "num_train_epochs: 2\nunfreeze_schedule: {head: 0, 1: 3, all: 0.6}\nsave_steps: 1\nsave_total_limit: 20\n";

fn recipe(desk: &Desk, extra: &str) -> justtrain_worker_api::RecipeSource {
    let recipe = desk.full_recipe(extra);
    let text = recipe.text.replace("num_train_epochs: 1\n", "").replace("save_steps: 3\n", "");
    justtrain_worker_api::RecipeSource { text, ..recipe }
}

#[test]
fn frozen_groups_are_bit_equal_and_unremembered_until_their_step() {
    let desk = Desk::new();
    let mut events = Vec::new();
    desk.run(&recipe(&desk, SCHEDULE), "run", false, &mut events, &StopToken::default()).unwrap();
    let head = ["model.embed_tokens.weight", "model.norm.weight"];
    // The rate of the first step is 0, so that it changes nothing.
    for step in 2..=10 {
        let checkpoint = desk.path(&format!("run/checkpoints/step-{step}"));
        let changed = changed(&desk.path("model"), &checkpoint.join("model"));
        let in_block = |layer: &str| changed.iter().filter(|name| name.contains(layer)).count();
        let blocks = ["layers.0.", "layers.1.", "layers.2."].map(in_block);
        let expected = if step <= 3 {
            [0, 0, 0]
        } else if step <= 6 {
            [0, 0, 9]
        } else {
            [9, 9, 9]
        };
        assert_eq!(blocks, expected, "step {step}");
        assert!(head.iter().all(|&name| changed.contains(name)));
        assert_eq!(remembered(&checkpoint), changed, "step {step}");
    }
    let told = |event: &Event| match event {
        Event::Log { text, .. } if text.en.contains("unfreezing") && text.zh.contains("解冻") => {
            Some(text.en.clone())
        }
        _ => None,
    };
    let told: Vec<_> = events.iter().filter_map(told).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("step 3: unfreezing \"1\"; 11 tensors")
            && told[1].starts_with("step 6: unfreezing \"all\"; 29")
    );
}

#[test]
fn a_resumed_run_unfreezes_where_one_that_goes_through_does() {
    for extra in [
        "",
        "optim: adamw_8bit\nmax_grad_norm: 0\n",
        "ema_decay: 0.5\nlr_decay: 1\n",
        "optim: galore_adamw\ngalore_rank: 4\n",
    ] {
        let desk = Desk::new();
        let recipe = recipe(&desk, &format!("{SCHEDULE}{extra}"));
        // Before, at and after both boundaries.
        desk.check_resume(&recipe, &[2, 3, 4, 6, 7], "model/model.safetensors");
    }
}

/// Linear probing, then fine-tuning: the probe's steps leave the backbone as it is.
#[test]
fn a_probe_comes_before_fine_tuning_and_adapters_join_from_the_top() {
    let desk = Desk::new();
    let probe = recipe(&desk, "unfreeze_schedule: {head: 0, all: 100}\nnum_train_epochs: 1\nsave_steps: 1\n");
    desk.losses(&probe, "probe");
    let changed = changed(&desk.path("model"), &desk.path("probe/model"));
    assert_eq!(changed, BTreeSet::from(["model.embed_tokens.weight".to_owned(), "model.norm.weight".to_owned()]));
    let adapters = desk.recipe("unfreeze_schedule: {1: 0, all: 0.5}\nsave_total_limit: 9\n");
    let losses = desk.check_resume(&adapters, &[4, 5, 6], "adapter/adapter_model.safetensors");
    assert!(losses[losses.len() - 1] < losses[0]);
    assert_eq!(remembered(&desk.path("whole/checkpoints/step-3")).len(), 14);
    assert_eq!(remembered(&desk.path("whole/checkpoints/step-9")).len(), 3 * 14);
}
