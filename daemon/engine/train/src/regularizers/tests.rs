//! Six steps with each regulariser beside PyTorch (`scripts/golden/regularizers.py`).

use justtrain_model::parameters::{Parameters, Trained};

use super::Regularizers;
use crate::objectives;
use crate::optim::{AdamW, Groups};
use crate::step::{Measured, MicroBatch, Step};
use crate::testing::{batch, decoder, doubles, fixture, off_by, recipe, step};

const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";

/// What each step measured, and a weight at the end. Without clipping the updates come at once.
fn run(more: &str, max_grad_norm: f64) -> (Vec<Measured>, Vec<f32>) {
    let (recipe, mut decoder, mut adamw) = (recipe(more), decoder(), AdamW::new(0.9, 0.999, 1e-8, 0.0));
    let objective = objectives::new(&recipe);
    let regularizers = &Regularizers::new(&recipe, &decoder, Trained::Weights);
    let groups = &Groups::default();
    let mut measured = Vec::new();
    for number in 1..=6 {
        let step = Step { max_grad_norm, ..step(&*objective, Trained::Weights, number, groups, regularizers) };
        let batch = MicroBatch { dropout_seed: Some(999 + number), ..batch() };
        measured.push(step.run(&mut decoder, &mut adamw, vec![batch]));
    }
    let weights = decoder.trained_mut(Trained::Weights);
    (measured, weights.into_iter().find(|parameter| parameter.name == WEIGHT).unwrap().values())
}

#[test]
fn six_steps_with_each_equal_pytorch() {
    let goldens = fixture("regularizers.safetensors");
    for (name, more) in [
        ("mixout", "mixout_p: 0.3"),
        ("neftune", "neftune_noise_alpha: 5"),
        ("l2_sp", "l2sp_alpha: 0.5"),
        ("smoothing", "label_smoothing_factor: 0.1"),
    ] {
        let (measured, weights) = run(more, 1.0);
        let expected =
            doubles(&goldens, &format!("{name}.loss")).into_iter().zip(doubles(&goldens, &format!("{name}.grad_norm")));
        for (index, (measured, (loss, norm))) in measured.iter().zip(expected).enumerate() {
            // The loss that is shown is without the pull of L2-SP, which PyTorch's has.
            if name != "l2_sp" {
                assert!((measured.loss / loss - 1.0).abs() < 1e-4, "{name} {index}: {measured:?}, expected {loss}");
            }
            assert!((measured.grad_norm / norm - 1.0).abs() < 1e-3, "{name} {index}: {measured:?}, expected {norm}");
        }
        let expected = goldens.read_f32(&format!("{name}.final")).unwrap();
        let worst = off_by(&weights, &expected);
        assert!(worst < 5e-4, "{name} is off by {worst}");
    }
}

#[test]
fn each_changes_what_it_should_and_is_the_same_with_updates_at_once() {
    let (_, plain) = run("", 1e9);
    for more in ["mixout_p: 0.3", "neftune_noise_alpha: 5", "l2sp_alpha: 0.5", "resid_pdrop: 0.1"] {
        let ((summed, weights), (at_once, same)) = (run(more, 1e9), run(more, 0.0));
        // Dropout is the decoder's, which `run` does not set.
        assert_eq!(weights == plain, more.starts_with("resid"), "{more}");
        assert!(weights == same, "{more}");
        assert_eq!(summed[5].loss, at_once[5].loss, "{more}");
    }
}
