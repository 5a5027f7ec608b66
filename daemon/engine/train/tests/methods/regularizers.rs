//! Regularisers in whole runs: reproducible across a resume, and without effect on a validation.

use justtrain_train::StopToken;
use justtrain_worker_api::{Event, RecipeSource};

use crate::desk::{Desk, losses};

const OF_ANY: [&str; 5] = [
    "resid_pdrop: 0.2\n",
    "attention_dropout: 0.2\n",
    "label_smoothing_factor: 0.1\n",
    "neftune_noise_alpha: 5\n",
    "rdrop_alpha: 1\nattention_dropout: 0.1\nresid_pdrop: 0.1\n",
];
const OF_WEIGHTS: [&str; 2] = ["l2sp_alpha: 0.1\n", "mixout_p: 0.2\ngradient_checkpointing: true\n"];

#[test]
fn a_resumed_run_equals_one_that_goes_through() {
    for extra in OF_ANY {
        let desk = Desk::new();
        let losses = desk.check_resume(&desk.recipe(extra), &[3], "adapter/adapter_model.safetensors");
        assert!(losses[losses.len() - 1] < losses[0], "{extra}: {losses:?}");
    }
    for extra in OF_ANY.into_iter().chain(OF_WEIGHTS) {
        let desk = Desk::new();
        let losses = desk.check_resume(&desk.full_recipe(extra), &[2, 3], "model/model.safetensors");
        assert!(losses[losses.len() - 1] < losses[0], "{extra}: {losses:?}");
    }
}

/// Before the first update the model is the base model, whatever is done while training.
#[test]
fn a_validation_sees_none_of_it() {
    let desk = Desk::new();
    let first = |extra: &str, run: &str| {
        let recipe = desk.full_recipe(&format!("eval_steps: 1\nwarmup_steps: 2\n{extra}"));
        let mut events = Vec::new();
        desk.run(&recipe, run, false, &mut events, &StopToken::default()).unwrap();
        let validation = events.iter().find_map(|event| match event {
            Event::Evaluation { loss, .. } => Some(*loss),
            _ => None,
        });
        (losses(&events)[0], validation.unwrap())
    };
    let (plain_loss, plain_validation) = first("", "plain");
    for (index, extra) in OF_ANY.into_iter().chain(["mixout_p: 0.2\n"]).enumerate() {
        let (loss, validation) = first(extra, &index.to_string());
        // With the weights that mixout puts back, the first step is as without, but for rounding.
        let same = (loss / plain_loss - 1.0).abs() < 1e-5;
        assert_eq!(same, extra.starts_with("mixout"), "{extra}: {loss} {plain_loss}");
        assert_eq!(validation, plain_validation, "{extra}");
    }
}

/// Held near its start a model goes less far.
#[test]
fn l2_sp_keeps_weights_near_their_start() {
    let desk = Desk::new();
    let distance = |extra: &str, run: &str| {
        let recipe: RecipeSource = desk.full_recipe(&format!("optim: sgd\nmax_grad_norm: 0\n{extra}"));
        let text = recipe.text.replace("learning_rate: 0.002", "learning_rate: 0.1");
        desk.losses(&RecipeSource { text, ..recipe }, run);
        let read = |folder: &str| {
            let file =
                justtrain_weights::safetensors::SafetensorsFile::open(&desk.path(folder).join("model.safetensors"));
            file.unwrap().read_f32("model.layers.1.mlp.up_proj.weight").unwrap()
        };
        let (start, end) = (read("model"), read(&format!("{run}/model")));
        start.iter().zip(end).map(|(start, end)| f64::from(end - start).powi(2)).sum::<f64>().sqrt()
    };
    let (free, held) = (distance("", "free"), distance("l2sp_alpha: 5\n", "held"));
    assert!(held < 0.8 * free, "{held} {free}");
}
