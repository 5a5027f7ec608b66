//! Stages and rates beside PyTorch (`scripts/golden/unfreezing.py`).

use justtrain_model::Decoder;
use justtrain_model::adapters::{LoraConfig, attach_lora};
use justtrain_model::parameters::{Parameters, Trained};

use super::{Group, Trainable};
use crate::objectives::Sft;
use crate::optim::{AdamW, Optimizer};
use crate::regularizers::Regularizers;
use crate::step::Step;
use crate::testing::{batch, decoder, doubles, fixture, recipe};

#[test]
fn eight_steps_of_gradual_unfreezing_equal_pytorch() {
    let goldens = fixture("unfreezing.safetensors");
    let (recipe, mut decoder) = (recipe("unfreeze_schedule: {head: 0, 1: 2, all: 5}"), decoder());
    let trainable = Trainable::new(&recipe, &decoder, Trained::Weights, 8).unwrap();
    let groups = trainable.joining(recipe.groups(), &recipe, &decoder);
    let mut adamw = AdamW::new(0.9, 0.999, 1e-8, 0.0);
    for (index, (loss, norm)) in (0..).zip(doubles(&goldens, "loss").into_iter().zip(doubles(&goldens, "grad_norm"))) {
        let step = Step {
            objective: &Sft::default(),
            trained: trainable.after(index),
            checkpointing: false,
            max_grad_norm: 1.0,
            loss_scale: None,
            number: index + 1,
            learning_rate: recipe.learning_rate,
            groups: &groups,
            regularizers: &Regularizers::default(),
            seed: 0,
        };
        let measured = step.run(&mut decoder, &mut adamw, vec![batch()]);
        assert!((measured.loss / loss - 1.0).abs() < 1e-4, "step {index}: {measured:?}, expected {loss}");
        assert!((measured.grad_norm / norm - 1.0).abs() < 1e-3, "step {index}: {measured:?}, expected {norm}");
        let remembered = adamw.state().len();
        // Two moments of each: the norm and the table, a block's nine weights, the two other blocks'.
        assert_eq!(
            remembered,
            2 * [2, 2 + 9, 2 + 27][usize::from(index >= 2) + usize::from(index >= 5)],
            "step {index}"
        );
    }
    for parameter in decoder.trained_mut(Trained::Weights) {
        let Ok(expected) = goldens.read_f32(&format!("final.{}", parameter.name)) else { continue };
        let worst = parameter.values().iter().zip(&expected).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-4, "{} is off by {worst}", parameter.name);
    }
}

#[test]
fn every_group_learns_more_slowly_than_the_one_above() {
    let decoder = decoder();
    let share = |more: &str, name: &str| {
        let recipe = recipe(more);
        let trainable = Trainable::new(&recipe, &decoder, Trained::Weights, 10).unwrap();
        trainable.joining(recipe.groups(), &recipe, &decoder).share(name)
    };
    let block = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
    let ulmfit = "unfreeze_schedule: {head: 0, 2: 0.5, all: 0.8}";
    assert_eq!(share(ulmfit, "model.norm.weight"), 1.0);
    assert_eq!([1, 2].map(|layer| share(ulmfit, &block(layer))), [1.0 / 2.6; 2]);
    assert_eq!(share(ulmfit, &block(0)), 2.6f64.powi(-2));
    // Without a schedule block by block, the table below them all.
    let expected = [3, 2, 1].map(|depth| 2f64.powi(-depth));
    assert_eq!([0, 1, 2].map(|layer| share("lr_decay: 2", &block(layer))), expected);
    assert_eq!(share("lr_decay: 2", "model.embed_tokens.weight"), 2f64.powi(-4));
    assert_eq!(share("lr_decay: 2", "model.norm.weight"), 1.0);
    assert_eq!(share("", &block(0)), 1.0);
}

#[test]
fn stages_begin_at_their_step_or_share() {
    let decoder = decoder();
    let recipe = recipe("unfreeze_schedule: {1: 0, 2: 0.25, all: 60}");
    let trainable = Trainable::new(&recipe, &decoder, Trained::Weights, 100).unwrap();
    let count = |steps: u64| decoder.trained_sizes(trainable.after(steps)).len();
    assert_eq!([0, 24, 25, 59, 60, 99].map(count), [11, 11, 20, 20, 29, 29]);
}

#[test]
fn a_group_that_adds_nothing_is_refused() {
    let mut decoder = decoder();
    let refused = |decoder: &Decoder, more: &str, kind: Trained<'static>| {
        let Err(problems) = Trainable::new(&recipe(more), decoder, kind, 10) else { panic!("refused") };
        problems.into_iter().map(|problem| problem.key.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(refused(&decoder, "unfreeze_schedule: {head: 0, 4: 5}", Trained::Weights), ["unfreeze_schedule.4"]);
    attach_lora(&mut decoder, &LoraConfig { rank: 2, ..LoraConfig::default() }, 1).unwrap();
    assert_eq!(
        refused(&decoder, "unfreeze_schedule: {head: 0, all: 5}", Trained::Adapters),
        ["unfreeze_schedule.head"]
    );
    assert_eq!(Group::parse("0"), None);
}
