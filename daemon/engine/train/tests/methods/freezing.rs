//! What is frozen stays as it was to the last bit, and nothing is remembered of it.

use std::collections::BTreeSet;
use std::path::Path;

use justtrain_train::StopToken;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::{Event, FailureReason, RecipeSource};

use crate::desk::Desk;

fn recipe(desk: &Desk, extra: &str) -> RecipeSource {
    let recipe = desk.full_recipe(extra);
    RecipeSource { text: recipe.text.replace("finetuning_type: full", "finetuning_type: freeze"), ..recipe }
}

/// Names of the tensors that differ between two folders of a model.
pub(crate) fn changed(before: &Path, after: &Path) -> BTreeSet<String> {
    let open = |folder: &Path| SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    let (before, after) = (open(before), open(after));
    let bits = |file: &SafetensorsFile, name: &str| -> Vec<u32> {
        file.read_f32(name).unwrap().into_iter().map(f32::to_bits).collect()
    };
    assert!(before.names().collect::<BTreeSet<_>>() == after.names().collect::<BTreeSet<_>>());
    before.names().filter(|name| bits(&before, name) != bits(&after, name)).map(str::to_owned).collect()
}

/// Names of the parameters that the optimiser of a checkpoint remembers.
pub(crate) fn remembered(checkpoint: &Path) -> BTreeSet<String> {
    let file = SafetensorsFile::open(&checkpoint.join("optimizer.safetensors")).unwrap();
    file.names().map(|name| name.rsplit_once('.').unwrap().0.to_owned()).collect()
}

fn names(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn only_what_is_chosen_changes_and_is_remembered() {
    let desk = Desk::new();
    let block = |layer: usize| {
        let parts = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let parts =
            parts.into_iter().chain(["post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
        parts.map(move |part| format!("model.layers.{layer}.{part}.weight"))
    };
    let cases = [
        ("freeze_trainable_layers: 1\n", block(2).collect::<BTreeSet<_>>()),
        ("", block(1).chain(block(2)).collect()),
        (
            "freeze_trainable_layers: -1\nfreeze_trainable_modules: mlp\nfreeze_extra_modules: [norm]\n",
            block(0).filter(|name| name.contains("mlp.")).chain(["model.norm.weight".to_owned()]).collect(),
        ),
        ("freeze_trainable_layers: 0\nfreeze_extra_modules: norm\n", names(&["model.norm.weight"])),
        ("freeze_trainable_layers: 0\nfreeze_extra_modules: embed_tokens\n", names(&["model.embed_tokens.weight"])),
        (
            "unfrozen_parameters: ['1.self_attn.[qv]']\n",
            names(&["model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight"]),
        ),
    ];
    for (index, (extra, expected)) in cases.into_iter().enumerate() {
        for way in ["", "max_grad_norm: 0\n", "gradient_checkpointing: true\n"] {
            let (run, mut events) = (format!("{index}{}", way.len()), Vec::new());
            desk.run(&recipe(&desk, &format!("{extra}{way}")), &run, false, &mut events, &StopToken::default())
                .unwrap();
            assert_eq!(changed(&desk.path("model"), &desk.path(&run).join("model")), expected, "{extra}{way}");
            assert_eq!(remembered(&desk.path(&run).join("checkpoints/step-5")), expected, "{extra}{way}");
            let file = SafetensorsFile::open(&desk.path("model/model.safetensors")).unwrap();
            let numbers: usize = expected.iter().map(|name| file.shape(name).unwrap().iter().product::<usize>()).sum();
            let told = events.iter().find_map(|event| match event {
                Event::Started { trainable_parameters, .. } => Some(*trainable_parameters),
                _ => None,
            });
            assert_eq!(told, Some(numbers as u64));
        }
    }
}

#[test]
fn a_resumed_run_equals_one_that_goes_through() {
    for extra in ["freeze_trainable_layers: 1\n", "optim: adamw_8bit\nema_decay: 0.5\neval_steps: 2\n"] {
        let desk = Desk::new();
        let losses = desk.check_resume(&recipe(&desk, extra), &[2], "model/model.safetensors");
        assert!(losses[4] < losses[0], "{losses:?}");
    }
}

#[test]
fn a_module_that_the_model_does_not_have_is_refused_before_a_step() {
    let desk = Desk::new();
    let refused = |extra: &str| {
        let failure =
            desk.run(&recipe(&desk, extra), "run", false, &mut Vec::new(), &StopToken::default()).unwrap_err();
        assert_eq!(failure.reason, FailureReason::RecipeInvalid);
        failure.problems.into_iter().next().unwrap()
    };
    let problem = refused("freeze_extra_modules: lm_head\n");
    assert_eq!(problem.expected.as_deref(), Some("embed_tokens | norm"));
    assert_eq!(refused("unfrozen_parameters: [conv]\n").key.as_deref(), Some("unfrozen_parameters"));
}

/// PEFT's `layers_to_transform`: adapters in some blocks alone.
#[test]
fn adapters_are_in_the_chosen_blocks_alone() {
    let desk = Desk::new();
    let losses =
        desk.check_resume(&desk.recipe("layers_to_transform: [2]\n"), &[3], "adapter/adapter_model.safetensors");
    assert!(losses[losses.len() - 1] < losses[0]);
    let folder = desk.path("whole/adapter");
    let file = SafetensorsFile::open(&folder.join("adapter_model.safetensors")).unwrap();
    assert_eq!(file.names().count(), 14);
    assert!(file.names().all(|name| name.starts_with("base_model.model.model.layers.2.")));
    let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["layers_to_transform"], serde_json::json!([2]));
    let failure =
        desk.run(&desk.recipe("layers_to_transform: 3\n"), "run", false, &mut Vec::new(), &StopToken::default());
    let problem = failure.unwrap_err().problems.remove(0);
    assert_eq!((problem.key.as_deref(), problem.expected.as_deref()), (Some("layers_to_transform"), Some("0 to 2")));
}
