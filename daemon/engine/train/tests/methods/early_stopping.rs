//! Runs that stop waiting for a better validation, and runs that end with the best one.

use justtrain_train::StopToken;
use justtrain_train::evaluate::evaluate;
use justtrain_worker_api::{EvaluateOptions, Event, ModelFiles, Outcome, RecipeSource, TrainResult};

use crate::desk::Desk;

/// Learns the few rows by heart, so that the held-out ones soon become worse.
fn recipe(desk: &Desk, extra: &str) -> RecipeSource {
    let recipe =
        desk.full_recipe(&format!("num_train_epochs: 12\neval_steps: 2\nlr_scheduler_type: constant\n{extra}"));
    let text = recipe.text.replace("num_train_epochs: 1\n", "").replace("learning_rate: 0.002", "learning_rate: 0.02");
    RecipeSource { text, ..recipe }
}

fn run(desk: &Desk, recipe: &RecipeSource, run: &str) -> (TrainResult, Vec<Event>) {
    let mut events = Vec::new();
    let outcome = desk.run(recipe, run, false, &mut events, &StopToken::default()).unwrap();
    let Outcome::Trained { stopped: false, result } = outcome else { panic!("trained") };
    (result, events)
}

fn validations(events: &[Event]) -> Vec<(u64, f64)> {
    let validation = |event: &Event| match event {
        Event::Evaluation { step, loss, .. } => Some((*step, *loss)),
        _ => None,
    };
    events.iter().filter_map(validation).collect()
}

fn best(validations: &[(u64, f64)]) -> (u64, f64) {
    validations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
}

/// The loss of what a run left, on the rows that were held out.
fn loss_of(desk: &Desk, recipe: &RecipeSource, folder: &str) -> f64 {
    let tuned = ModelFiles { name: "tiny".into(), path: desk.path(folder), ..ModelFiles::default() };
    let options = EvaluateOptions { max_samples: 0, max_new_tokens: 1 };
    evaluate(recipe, &tuned, None, &options, &mut Vec::new()).unwrap().base.loss
}

#[test]
fn a_run_stops_when_it_has_waited_long_enough() {
    let desk = Desk::new();
    let (whole, events) = run(&desk, &recipe(&desk, ""), "whole");
    let all = validations(&events);
    let (best_step, best_loss) = best(&all);
    assert!(best_step + 6 < whole.steps && all[all.len() - 1].1 > best_loss, "{all:?}");
    let (early, events) = run(&desk, &recipe(&desk, "early_stopping_steps: 2\n"), "early");
    // The first two validations in a row that were not better than the best before.
    let waits = |index: usize| {
        let before = best(&all[..index - 1]).1;
        all[index - 1].1 >= before && all[index].1 >= before
    };
    let expected = (2..all.len()).find(|&index| waits(index)).unwrap();
    assert_eq!(validations(&events), all[..=expected]);
    assert_eq!(early.steps, all[expected].0);
    // The last step has its checkpoint, and the weights are the last ones.
    assert!(desk.path(&format!("early/checkpoints/step-{}", early.steps)).exists());
    let told = |event: &Event| matches!(event, Event::Log { text, .. } if text.en.contains("stopped early") && text.zh.contains("提前停止"));
    assert!(events.iter().any(told));
}

#[test]
fn a_run_ends_with_the_weights_of_its_best_validation() {
    for extra in ["", "ema_decay: 0.5\n"] {
        let desk = Desk::new();
        let recipe = recipe(&desk, &format!("early_stopping_steps: 2\nload_best_model_at_end: true\n{extra}"));
        let (result, events) = run(&desk, &recipe, "run");
        let (step, loss) = best(&validations(&events));
        assert!(step < result.steps, "{extra}: {step} of {}", result.steps);
        assert_eq!(result.validation_loss, Some(loss));
        let left = loss_of(&desk, &recipe, "run/model");
        assert!((left / loss - 1.0).abs() < 1e-6, "{extra}: {left}, expected {loss}");
    }
}

#[test]
fn a_resumed_run_stops_where_one_that_goes_through_does() {
    let desk = Desk::new();
    let recipe = recipe(
        &desk,
        "early_stopping_steps: 2\nload_best_model_at_end: true\nmetric_for_best_model: eval_token_accuracy\n",
    );
    let losses = desk.check_resume(&recipe, &[3, 6], "model/model.safetensors");
    assert!(losses.len() < 60, "{}", losses.len());
}
