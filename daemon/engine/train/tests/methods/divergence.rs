//! Losses and gradients that are no finite numbers: from weights, rows and recipes that really make them.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use burn::tensor::Device;
use justtrain_kernels::Targets;
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, Input, WeightFormats};
use justtrain_train::StopToken;
use justtrain_train::objectives::Sft;
use justtrain_train::optim::{AdamW, Groups, Optimizer};
use justtrain_train::regularizers::Regularizers;
use justtrain_train::step::{MicroBatch, Step};
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write_folder};
use justtrain_worker_api::{Event, Failure, FailureReason, Outcome, RecipeSource};

use crate::desk::{Desk, losses};

const TABLE: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";
/// The token of `Z` in the desk's tokenizer.
const BAD_TOKEN: usize = 3 + b'Z' as usize - 32;

fn run(desk: &Desk, recipe: &RecipeSource) -> (Result<Outcome, Failure>, Vec<Event>) {
    let mut events = Vec::new();
    let outcome = desk.run(recipe, "run", false, &mut events, &StopToken::default());
    (outcome, events)
}

/// Step, rows and place in a row of the steps that were skipped.
fn skipped(events: &[Event]) -> Vec<(u64, Vec<u64>, u64)> {
    let skipped = |event: &Event| match event {
        Event::StepSkipped { step, rows, in_a_row, .. } => Some((*step, rows.clone(), *in_a_row)),
        _ => None,
    };
    events.iter().filter_map(skipped).collect()
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Gives the model an output layer of its own, and changes its weights.
fn untie(desk: &Desk, change: impl FnOnce(&mut Tensors)) {
    let path = desk.path("model/config.json");
    let config = fs::read_to_string(&path).unwrap();
    let untied = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    assert_ne!(untied, config);
    fs::write(path, untied).unwrap();
    let file = SafetensorsFile::open(&desk.path("model/model.safetensors")).unwrap();
    let read = |name: &str| (file.shape(name).unwrap().to_vec(), file.read_f32(name).unwrap());
    let mut tensors: Tensors = file.names().map(|name| (name.to_owned(), read(name))).collect();
    tensors.insert(OUTPUT.to_owned(), tensors[TABLE].clone());
    change(&mut tensors);
    let entry = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<f32>))| Entry {
        name: name.clone(),
        shape: shape.clone(),
        dtype: Dtype::F32,
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    drop(file);
    write_folder(&desk.path("model"), &entries, u64::MAX, |entry| Ok(tensors[&entry.name].1.clone())).unwrap();
}

/// NaN for the embedding of `Z`.
fn spoil_one_token(desk: &Desk) {
    untie(desk, |tensors| {
        let (shape, table) = tensors.get_mut(TABLE).unwrap();
        table[BAD_TOKEN * shape[1]] = f32::NAN;
    });
}

#[test]
fn a_bad_step_changes_neither_weights_nor_optimiser() {
    let desk = Desk::new();
    spoil_one_token(&desk);
    let checkpoint = Checkpoint::open(&desk.path("model")).unwrap();
    let mut decoder = Decoder::load(&checkpoint, &Device::flex(), WeightFormats::default()).unwrap();
    let mut adamw = AdamW::new(0.9, 0.999, 1e-8, 0.1);
    let mut step = |ids: Vec<u32>, number: u64, max_grad_norm: f64| {
        let trained = Trained::Weights;
        let (groups, regularizers) = (&Groups::default(), &Regularizers::default());
        let step = Step {
            objective: &Sft::default(),
            trained,
            checkpointing: false,
            max_grad_norm,
            loss_scale: None,
            number,
            learning_rate: 0.01,
            groups,
            regularizers,
            seed: 0,
        };
        let len = ids.len();
        let targets = Arc::new(Targets { rows: (0..len - 1).collect(), tokens: ids[1..].to_vec(), weights: None });
        let input = Input::packed(ids, &[0, len]);
        let measured = step.run(
            &mut decoder,
            &mut adamw,
            vec![MicroBatch { task: 0, input, targets, answers: Vec::new(), dropout_seed: None }],
        );
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let weights: Vec<_> = decoder.trained_mut(trained).iter().map(|parameter| bits(parameter.values())).collect();
        let memory: Vec<_> = adamw.state().into_iter().map(|(name, tensor)| format!("{name}{tensor:?}")).collect();
        (measured, (weights, memory))
    };
    for max_grad_norm in [1.0, 0.0] {
        let (good, before) = step(vec![10, 20, 30, 40], 1, max_grad_norm);
        assert!(good.is_finite());
        let (bad, after) = step(vec![10, BAD_TOKEN as u32, 30, 40], 2, max_grad_norm);
        assert!(!bad.is_finite() && !bad.half_done);
        assert!(before == after);
    }
}

/// The step is tried again with the next rows, and the run comes to its end.
#[test]
fn rows_without_a_finite_loss_are_passed_over_and_named() {
    let desk = Desk::new();
    spoil_one_token(&desk);
    let data = fs::read_to_string(desk.path("data.jsonl")).unwrap();
    fs::write(desk.path("data.jsonl"), data.replace("is 7", "Z 7").replace("is 20", "Z 20")).unwrap();
    let bad: Vec<u64> = (1..)
        .zip(fs::read_to_string(desk.path("data.jsonl")).unwrap().lines())
        .filter(|(_, line)| line.contains('Z'))
        .map(|(row, _)| row)
        .collect();
    assert!(bad.len() > 1);
    let recipe = desk.recipe("");
    let text = recipe.text.replace("val_size: 4", "val_size: 0");
    let (outcome, events) = run(&desk, &RecipeSource { text, ..recipe });
    let Outcome::Trained { stopped: false, result } = outcome.unwrap() else { panic!("trained") };
    let (losses, skipped) = (losses(&events), skipped(&events));
    assert_eq!(losses.len() as u64, result.steps);
    assert!(losses.iter().all(|loss| loss.is_finite()) && losses[losses.len() - 1] < losses[0]);
    assert!(!skipped.is_empty());
    assert!(skipped.iter().all(|(_, rows, _)| rows.iter().any(|row| bad.contains(row))), "{skipped:?}");
    // Each tried step came to pass later, with rows of which none is bad.
    assert!(skipped.iter().all(|(step, ..)| *step <= result.steps));
}

#[test]
fn a_model_with_a_weight_that_is_no_number_ends_the_run_with_step_and_rows() {
    let desk = Desk::new();
    let path = desk.path("model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    // The last weight of the file becomes NaN in bfloat16.
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xc0, 0x7f]);
    fs::write(&path, bytes).unwrap();
    let (outcome, events) = run(&desk, &desk.recipe("max_bad_steps: 3\n"));
    let failure = outcome.unwrap_err();
    assert_eq!(failure.reason, FailureReason::LossDiverged);
    let problem = &failure.problems[0];
    assert!(problem.message.en.contains("step 1, 3 times") && problem.message.zh.contains("第 1 步"), "{problem}");
    assert!(problem.found.as_ref().unwrap().contains("data rows"));
    assert!(problem.fix.en.contains("no checkpoint") && problem.fix.zh.contains("没有保存检查点"), "{problem}");
    let places: Vec<_> = skipped(&events).into_iter().map(|(step, _, in_a_row)| (step, in_a_row)).collect();
    assert_eq!(places, [(1, 1), (1, 2)]);
    assert!(!desk.path("run/adapter").exists());
}

/// A pull so strong that every step ends further on the other side: it diverges whatever the data and the processor.
#[test]
fn a_run_that_diverges_goes_back_to_its_last_good_checkpoint() {
    let desk = Desk::new();
    let recipe = desk.full_recipe(
        "optim: sgd\nmomentum: 0.9\nmax_grad_norm: 0\nwarmup_steps: 0\nlr_scheduler_type: constant\nmax_steps: 200\n\
         l2sp_alpha: 10\n",
    );
    let text = recipe
        .text
        .replace("learning_rate: 0.002", "learning_rate: 1")
        .replace("save_steps: 3", "save_steps: 1")
        // All rows in every step: one of one batch alone would be half done when its gradient turns out bad.
        .replace("gradient_accumulation_steps: 1", "gradient_accumulation_steps: 5");
    let (outcome, events) = run(&desk, &RecipeSource { text, ..recipe });
    let failure = outcome.unwrap_err();
    assert_eq!(failure.reason, FailureReason::LossDiverged);
    let last = losses(&events).len() as u64;
    assert_eq!(skipped(&events).len(), 4);
    let problem = &failure.problems[0];
    assert!(problem.message.en.contains(&format!("step {}, 5 times", last + 1)), "{problem}");
    // The weights of the last step gave no finite loss: those of the step before are what is left.
    assert!(problem.fix.en.contains(&format!("the weights of step {}", last - 1)), "{problem}");
    assert!(!desk.path(&format!("run/checkpoints/step-{last}")).exists());
    let weights = |folder: &str| fs::read(desk.path(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("run/model"), weights(&format!("run/checkpoints/step-{}/model", last - 1)));
}

/// What goes into the output layer is huge and its weights are tiny: the same logits, and gradients beyond all numbers.
#[test]
fn a_gradient_that_is_no_number_is_told_from_a_loss_that_is_none() {
    let desk = Desk::new();
    untie(&desk, |tensors| {
        for (name, factor) in [("model.norm.weight", 4e37), (OUTPUT, 1.0 / 4e37)] {
            tensors.get_mut(name).unwrap().1.iter_mut().for_each(|number| *number *= factor);
        }
    });
    let (outcome, events) = run(&desk, &desk.full_recipe("max_bad_steps: 4\n"));
    assert_eq!(outcome.unwrap_err().reason, FailureReason::LossDiverged);
    let finite_losses = events.iter().filter(|event| matches!(event, Event::StepSkipped { loss_is_finite: true, .. }));
    assert_eq!(finite_losses.count(), 3);
    // Without sums the first parameters are updated when a later gradient turns out bad: such a step cannot be skipped.
    let (outcome, events) = run(&desk, &desk.full_recipe("max_grad_norm: 0\n"));
    let failure = outcome.unwrap_err();
    assert!(failure.problems[0].message.en.contains("1 times"), "{}", failure.problems[0]);
    assert_eq!(skipped(&events), []);
}
