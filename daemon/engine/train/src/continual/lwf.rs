//! Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282): on the rows of the new stage the model is held to what it said
//! of them when the stage began. `λ·T²·KL(before‖now)` is added to the loss of each target, both softened by the temperature `T`.
//! No row of an earlier stage is needed.
//!
//! The model of before shares the memory of all that is not trained: beside an adapter it is a second pair, beside trained
//! weights a copy of these.

use burn::tensor::Tensor;
use justtrain_model::{Decoder, Head, Mode};

use crate::objectives::{Direction, Divergence, Loss, Objective, Preference};
use crate::recipe::Recipe;
use crate::step::MicroBatch;

/// Another objective, and this beside it.
#[derive(Debug)]
pub struct Lwf {
    pub inner: Box<dyn Objective>,
    /// As the stage began.
    pub before: Decoder,
    pub divergence: Divergence,
    pub lambda: f64,
}

impl Lwf {
    /// What the recipe minimises in a stage that begins with `decoder`: `inner`, or that with this beside it.
    pub(crate) fn beside(inner: Box<dyn Objective>, recipe: &Recipe, decoder: &Decoder) -> Box<dyn Objective> {
        let Some(lambda) = recipe.lwf() else { return inner };
        let divergence = Divergence {
            direction: Direction::Forward,
            temperature: recipe.lwf_temperature,
            vocabulary: decoder.config().vocab_size,
        };
        Box::new(Self { inner, before: decoder.clone(), divergence, lambda })
    }
}

impl Objective for Lwf {
    fn units(&self, batch: &MicroBatch) -> usize {
        self.inner.units(batch)
    }

    fn loss(&self, head: &Head, x: Tensor<2>, batch: &MicroBatch) -> Loss {
        let Loss { sum, graph, rewards } = self.inner.loss(head, x.clone(), batch);
        let (hidden, output) = head.normed(x);
        let before =
            (self.before.hidden_states(&batch.input, None, Mode::TUNED), self.before.output_layer(Mode::TUNED));
        let (divergence, of_divergence) =
            self.divergence.of(hidden, output, (&before.0, &before.1), &batch.targets.rows);
        Loss { sum: sum + self.lambda * divergence, graph: graph + of_divergence * self.lambda, rewards }
    }

    fn preference(&self) -> Option<&Preference> {
        self.inner.preference()
    }
}

#[cfg(test)]
mod tests {
    use justtrain_model::parameters::{Parameters, Trained};

    use super::*;
    use crate::objectives::Sft;
    use crate::optim::{AdamW, Groups};
    use crate::regularizers::Regularizers;
    use crate::testing::{batch, decoder, doubles, fixture, off_by, step};

    /// Beside PyTorch (`scripts/golden/continual.py`).
    #[test]
    fn six_steps_equal_pytorch() {
        let (goldens, mut decoder, mut adamw) =
            (fixture("continual.safetensors"), decoder(), AdamW::new(0.9, 0.999, 1e-8, 0.0));
        let vocabulary = decoder.config().vocab_size;
        let divergence = Divergence { direction: Direction::Forward, temperature: 2.0, vocabulary };
        let inner = Box::new(Sft::default());
        let lwf = Lwf { inner, before: decoder.clone(), divergence, lambda: 1.5 };
        let (groups, regularizers) = (&Groups::default(), &Regularizers::default());
        let expected = doubles(&goldens, "lwf.loss").into_iter().zip(doubles(&goldens, "lwf.grad_norm"));
        for (number, (loss, norm)) in (1..).zip(expected) {
            let step = step(&lwf, Trained::Weights, number, groups, regularizers);
            let measured = step.run(&mut decoder, &mut adamw, vec![batch()]);
            assert!((measured.loss / loss - 1.0).abs() < 1e-4, "{number}: {measured:?}, expected {loss}");
            assert!((measured.grad_norm / norm - 1.0).abs() < 1e-3, "{number}: {measured:?}, expected {norm}");
        }
        let name = "model.layers.1.mlp.up_proj.weight";
        let weights = decoder.trained_mut(Trained::Weights);
        let weight = weights.into_iter().find(|parameter| parameter.name == name).unwrap().values();
        let expected = goldens.read_f32("lwf.final").unwrap();
        let worst = off_by(&weight, &expected);
        assert!(worst < 5e-4, "off by {worst}");
    }
}
