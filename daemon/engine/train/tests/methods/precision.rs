//! Runs in float16: their losses are those of float32, and what overflows is scaled down and tried again.

use std::collections::BTreeSet;

use justtrain_train::StopToken;
use justtrain_weights::safetensors::SafetensorsFile;
use justtrain_worker_api::{Event, RecipeSource};

use crate::desk::{Desk, losses};

/// So large that the first gradients overflow.
const TOO_LARGE: &str = "precision: fp16\ninitial_scale_power: 32\n";

fn run(desk: &Desk, recipe: &RecipeSource, name: &str) -> Vec<Event> {
    let mut events = Vec::new();
    desk.run(recipe, name, false, &mut events, &StopToken::default()).unwrap();
    events
}

#[test]
fn losses_in_float16_are_those_in_float32() {
    let desk = Desk::new();
    for (name, recipe) in [("lora", Desk::recipe as fn(&Desk, &str) -> RecipeSource), ("full", Desk::full_recipe)] {
        let [half, exact] = ["fp16", "fp32"].map(|precision| {
            let events =
                run(&desk, &recipe(&desk, &format!("precision: {precision}\n")), &format!("{name}-{precision}"));
            assert!(!events.iter().any(|event| matches!(event, Event::StepSkipped { .. })), "{name} {precision}");
            losses(&events)
        });
        assert_ne!(half, exact, "{name}");
        for (step, (half, exact)) in half.iter().zip(&exact).enumerate() {
            assert!((half - exact).abs() < 0.01 * exact, "{name} step {step}: {half}, in float32 {exact}");
        }
    }
}

#[test]
fn what_overflows_is_skipped_and_the_scale_halved() {
    let desk = Desk::new();
    for (name, recipe) in [("lora", desk.recipe(TOO_LARGE)), ("full", desk.full_recipe(TOO_LARGE))] {
        let events = run(&desk, &recipe, name);
        let skipped = |event: &Event| match event {
            Event::StepSkipped { loss_is_finite: true, in_a_row: 0, loss_scale, .. } => *loss_scale,
            Event::StepSkipped { .. } => panic!("{event:?}"),
            _ => None,
        };
        let scales: Vec<f64> = events.iter().filter_map(skipped).collect();
        assert!(scales.len() > 2, "{name}: {scales:?}");
        assert_eq!(scales, (1..=scales.len()).map(|n| 2.0f64.powi(32 - n as i32)).collect::<Vec<_>>(), "{name}");
        let losses = losses(&events);
        assert!(losses.last().unwrap() < &losses[0], "{name}: {losses:?}");
    }
}

/// What a stage must hold on to is measured with gradients, too.
#[test]
fn what_mattered_is_known_in_float16() {
    let desk = Desk::new();
    let [half, exact] = [("half", TOO_LARGE), ("exact", "precision: fp32\n")].map(|(name, precision)| {
        let stages =
            "ewc_lambda: 10\nmax_steps: 1\nlearning_rate: 1e-9\nlora_dropout: 0\nstages: [{name: a}, {name: b}]\n";
        let recipe = desk.recipe(precision);
        let text = recipe.text.replace("learning_rate: 0.01\n", "").replace("lora_dropout: 0.1\n", "") + stages;
        run(&desk, &RecipeSource { text, ..recipe }, name);
        let file = SafetensorsFile::open(&desk.path(name).join("stages/1-a/fisher.safetensors")).unwrap();
        let names: BTreeSet<&str> = file.names().filter(|name| name.starts_with("fisher.")).collect();
        names.into_iter().flat_map(|name| file.read_f32(name).unwrap()).collect::<Vec<f32>>()
    });
    let (square, error) = half.iter().zip(&exact).fold((0.0, 0.0), |(square, error), (half, exact)| {
        (square + f64::from(exact * exact), error + f64::from((half - exact) * (half - exact)))
    });
    assert!(square > 0.0 && error.sqrt() < 0.02 * square.sqrt(), "{} of {}", error.sqrt(), square.sqrt());
}

/// A weighting of tasks that learns from the gradients must not learn from those that overflow.
#[test]
fn weights_of_tasks_survive_an_overflow() {
    let desk = Desk::new();
    for weighting in ["gradnorm", "pcgrad"] {
        let tasks = "tasks: [{name: a, dataset: data.jsonl}, {name: b, dataset: data.jsonl}]\n";
        let recipe = desk.recipe(&format!("{TOO_LARGE}{tasks}task_weighting: {weighting}\n"));
        let text = recipe.text.replace("dataset: data.jsonl\n", "");
        let events = run(&desk, &RecipeSource { text, ..recipe }, weighting);
        assert!(events.iter().any(|event| matches!(event, Event::StepSkipped { .. })));
        let losses = losses(&events);
        assert!(losses.last().unwrap() < &losses[0], "{weighting}: {losses:?}");
    }
}
