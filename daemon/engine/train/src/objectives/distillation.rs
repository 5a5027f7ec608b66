//! Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): the model learns a teacher's whole distribution over the next
//! token, beside the token that the data has there.
//!
//! A target's loss is `(1 − α)·CE + α·T²·KL`, with both distributions softened by the temperature `T`; `T²` keeps the gradient's size
//! when `T` changes. With the teacher's `p` and the model's `q`, forward is `KL(p‖q)`: whatever the teacher may say must be
//! possible. Reverse is `KL(q‖p)` (Gu et al. 2023, arXiv 2306.08543): nothing is said that the teacher would not say.
//!
//! Logits of both exist for a chunk of targets at a time. The gradient by the logits is known in closed form, so that of the hidden
//! states is made chunk by chunk beside the loss, as in the fused cross-entropy.

use burn::tensor::{Int, Tensor, TensorData};
use justtrain_kernels::cross_entropy::CHUNK_BYTES;
use justtrain_kernels::{self as kernels, Factors, Numbers, OutputLayer, Softened, linear_loss};
use justtrain_model::parameters::constant;
use justtrain_model::{Decoder, Head, Mode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Loss, Objective, RewardSums};
use crate::step::MicroBatch;

/// Bytes of the model's logits that exist at a time; the teacher's, the slopes and what they are made from take as much each.
pub(crate) const LOGITS_BYTES: usize = CHUNK_BYTES / 4;

/// Which of the two distributions the divergence is weighed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// By the teacher's.
    #[default]
    Forward,
    /// By the model's own.
    Reverse,
}

/// A divergence of softened distributions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    pub direction: Direction,
    pub temperature: f64,
    /// The first so many tokens are those that both vocabularies have.
    pub vocabulary: usize,
}

/// Learning from a teacher and from the data.
#[derive(Debug)]
pub struct Distillation {
    pub teacher: Decoder,
    pub divergence: Divergence,
    /// Share of the teacher in the loss; the rest is the data's.
    pub alpha: f64,
    pub of_data: kernels::Loss,
}

impl Objective for Distillation {
    fn units(&self, batch: &MicroBatch) -> usize {
        batch.targets.len()
    }

    fn loss(&self, head: &Head, x: Tensor<2>, batch: &MicroBatch) -> Loss {
        let (hidden, output) = head.normed(x);
        let teacher =
            (self.teacher.hidden_states(&batch.input, None, Mode::BASE), self.teacher.output_layer(Mode::BASE));
        let (divergence, graph) =
            self.divergence.of(hidden.clone(), output, (&teacher.0, &teacher.1), &batch.targets.rows);
        let (mut sum, mut graph) = (self.alpha * divergence, graph * self.alpha);
        if self.alpha < 1.0 {
            let of_data = linear_loss(hidden, output, batch.targets.clone(), self.of_data);
            sum += (1.0 - self.alpha) * f64::from(of_data.clone().inner().into_scalar::<f32>());
            graph = graph + of_data * (1.0 - self.alpha);
        }
        Loss { sum, graph, rewards: RewardSums::default() }
    }
}

impl Divergence {
    /// `T²·KL`, summed over the rows of `hidden`, and a number whose gradient is that of the sum. `hidden` and the teacher's are
    /// `[tokens, features]` after the last norm, each with its own number of features.
    pub fn of(
        &self,
        hidden: Tensor<2>,
        output: &OutputLayer,
        (taught, teacher): (&Tensor<2>, &OutputLayer),
        rows: &[usize],
    ) -> (f64, Tensor<1>) {
        let [tokens, width] = hidden.dims();
        let numbers = hidden.clone().inner();
        let device = numbers.device();
        let (mut sum, mut of_hidden) = (0.0, vec![0.0f32; tokens * width]);
        let trained = trained(output);
        let mut of_trained: Vec<Option<Tensor<2>>> = vec![None; trained.len()];
        let chunk = (LOGITS_BYTES / 4 / output.weight.dims()[0]).max(1);
        for (index, rows) in (0u64..).zip(rows.chunks(chunk)) {
            let places: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
            let places = Tensor::<1, Int>::from_data(TensorData::new(places, [rows.len()]), &device);
            let x = constant(numbers.clone().select(0, places.clone())).require_grad();
            let (layer, leaves) = own_graph(output, index);
            let logits = self.logits(x.clone(), &layer);
            let said = self.logits(taught.clone().select(0, places), teacher);
            let how = Softened { temperature: self.temperature as f32, reverse: self.direction == Direction::Reverse };
            let (loss, slopes) = kernels::divergence(logits.clone().inner(), said, how);
            sum += loss;
            let mut gradients = (logits * constant(slopes)).sum().backward();
            let gradient = x.grad_remove(&mut gradients).expect("logits depend on hidden states").into_data();
            let gradient = gradient.try_into_vec::<f32>().expect("gradients are f32");
            for (&row, gradient) in rows.iter().zip(gradient.chunks_exact(width)) {
                of_hidden[row * width..][..width].copy_from_slice(gradient);
            }
            for (sum, leaf) in of_trained.iter_mut().zip(leaves) {
                let gradient = leaf.grad_remove(&mut gradients).expect("logits depend on the output layer");
                *sum = Some(sum.take().map_or(gradient.clone(), |sum| sum + gradient));
            }
        }
        let of_hidden = Tensor::<2>::from_data(TensorData::new(of_hidden, [tokens, width]), &device);
        let mut graph = (hidden * constant(of_hidden)).sum();
        for (tensor, gradient) in trained.into_iter().zip(of_trained) {
            let Some(gradient) = gradient else { continue };
            graph = graph + (tensor * constant(gradient)).sum();
        }
        (sum, graph)
    }

    /// Of the tokens that both have.
    fn logits(&self, hidden: Tensor<2>, output: &OutputLayer) -> Tensor<2> {
        let logits = output.logits(hidden);
        if logits.dims()[1] == self.vocabulary { logits } else { logits.narrow(1, 0, self.vocabulary) }
    }
}

/// The tensors of an output layer that are trained.
fn trained(output: &OutputLayer) -> Vec<Tensor<2>> {
    let weight = match &output.weight.numbers {
        Numbers::Dense(weight) => Some(weight),
        Numbers::Packed(_) => None,
    };
    let pair = output.adapter.iter().flat_map(|Factors { a, b, .. }| [a, b]);
    weight.into_iter().chain(pair).filter(|tensor| tensor.is_require_grad()).cloned().collect()
}

/// The output layer for a chunk's own graph, and in it those of its tensors that are trained. Each chunk has its own dropout.
fn own_graph(output: &OutputLayer, chunk: u64) -> (OutputLayer, Vec<Tensor<2>>) {
    let (mut layer, mut leaves) = (output.clone(), Vec::new());
    let mut own = |tensor: &mut Tensor<2>| {
        let trained = tensor.is_require_grad();
        *tensor = constant(tensor.clone().inner());
        if trained {
            *tensor = tensor.clone().require_grad();
            leaves.push(tensor.clone());
        }
    };
    if let Numbers::Dense(weight) = &mut layer.weight.numbers {
        own(weight);
    }
    if let Some(Factors { a, b, dropout, .. }) = &mut layer.adapter {
        own(a);
        own(b);
        dropout.iter_mut().for_each(|dropout| dropout.seed = dropout.seed.wrapping_add(chunk));
    }
    (layer, leaves)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;
    use justtrain_kernels::Weight;
    use justtrain_weights::safetensors::SafetensorsFile;

    use super::*;

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    fn close(ours: &[f32], theirs: &[f32], what: &str) {
        let scale = theirs.iter().fold(0.0f32, |scale, value| scale.max(value.abs()));
        let apart = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(ours.len() == theirs.len() && apart <= 1e-5 * scale.max(1e-2), "{what}: {apart} of {scale}");
    }

    /// `torch.nn.functional.kl_div` in double precision (`scripts/golden/distillation.py`): loss and gradients, to 1e-5 of the
    /// largest number.
    #[test]
    fn divergences_and_gradients_equal_pytorch() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/distillation.safetensors");
        let goldens = SafetensorsFile::open(&path).unwrap();
        let device = Device::flex();
        let read = |name: &str, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(goldens.read_f32(name).unwrap(), shape), &device)
        };
        let rows = [0, 3, 4, 8];
        let taught = read("teacher.hidden", [9, 12]);
        for (case, direction, temperature, soft_cap) in [
            ("forward", Direction::Forward, 1.0, None),
            ("forward_soft", Direction::Forward, 2.5, Some(3.0)),
            ("reverse", Direction::Reverse, 1.0, None),
            ("reverse_soft", Direction::Reverse, 2.5, Some(3.0)),
        ] {
            // The model's table has three rows more than the teacher's.
            let divergence = Divergence { direction, temperature, vocabulary: 37 };
            let hidden = constant(read("hidden", [9, 20])).require_grad();
            let weight = constant(read("weight", [40, 20])).require_grad();
            let output = OutputLayer { weight: weight.clone().into(), soft_cap, adapter: None };
            let teacher = OutputLayer::from(Weight::from(read("teacher.weight", [37, 12])));
            let (sum, graph) = divergence.of(hidden.clone(), &output, (&taught, &teacher), &rows);
            let mut gradients = graph.backward();
            let expected = |name: &str| goldens.read_f32(&format!("{case}.{name}")).unwrap();
            close(&[sum as f32], &expected("loss"), case);
            close(&values(hidden.grad_remove(&mut gradients).unwrap()), &expected("hidden"), case);
            close(&values(weight.grad_remove(&mut gradients).unwrap()), &expected("weight"), case);
        }
    }

    /// The gradients of a pair are those of `W + s·B·A` times what is beside each factor there: `s·Bᵀ·G` and `s·G·Aᵀ`.
    #[test]
    fn a_pair_on_the_output_layer_learns_as_a_part_of_its_weight() {
        let device = Device::flex();
        let numbers = |shape: [usize; 2], seed: usize| {
            let numbers = (0..shape[0] * shape[1]).map(|i| ((i * 7919 + seed) % 101) as f32 / 101.0 - 0.5);
            Tensor::<2>::from_data(TensorData::new(numbers.collect::<Vec<_>>(), shape), &device)
        };
        let (weight, hidden, teacher) = (numbers([37, 12], 1), numbers([9, 12], 2), numbers([37, 12], 3) * 4.0);
        let (a, b, scale) = (numbers([3, 12], 4), numbers([37, 3], 5), 0.5);
        let divergence = Divergence { direction: Direction::Forward, temperature: 2.0, vocabulary: 37 };
        let teacher = OutputLayer::from(Weight::from(teacher));
        let run = |output: &OutputLayer| {
            let x = constant(hidden.clone()).require_grad();
            let (sum, graph) = divergence.of(x.clone(), output, (&hidden, &teacher), &[0, 3, 4, 8]);
            let mut gradients = graph.backward();
            (sum as f32, values(x.grad_remove(&mut gradients).unwrap()), gradients)
        };
        let merged = constant(weight.clone() + b.clone().matmul(a.clone()) * scale).require_grad();
        let (sum, of_hidden, mut gradients) = run(&OutputLayer::from(Weight::from(merged.clone())));
        let of_weight = merged.grad_remove(&mut gradients).unwrap();
        let [a_leaf, b_leaf] = [&a, &b].map(|factor| constant(factor.clone()).require_grad());
        let adapter = Some(Factors { a: a_leaf.clone(), b: b_leaf.clone(), scale, dropout: None });
        let output = OutputLayer { adapter, ..OutputLayer::from(Weight::from(constant(weight))) };
        let (our_sum, our_hidden, mut gradients) = run(&output);
        close(&[our_sum], &[sum], "loss");
        close(&our_hidden, &of_hidden, "hidden");
        let of_a = b.transpose().matmul(of_weight.clone()) * scale;
        close(&values(a_leaf.grad_remove(&mut gradients).unwrap()), &values(of_a), "A");
        let of_b = of_weight.matmul(a.transpose()) * scale;
        close(&values(b_leaf.grad_remove(&mut gradients).unwrap()), &values(of_b), "B");
    }

    /// A frozen layer gives the hidden states what a trained one gives them, and several chunks make what one makes.
    #[test]
    fn nothing_is_learnt_from_oneself() {
        let device = Device::flex();
        let numbers = |count: usize| (0..count).map(|i| ((i * 7919) % 101) as f32 / 101.0 - 0.5).collect::<Vec<_>>();
        // More rows than a chunk has.
        let (tokens, vocabulary) = (48, LOGITS_BYTES / 4 / 16);
        let hidden = Tensor::<2>::from_data(TensorData::new(numbers(tokens * 2), [tokens, 2]), &device);
        let weight = Tensor::<2>::from_data(TensorData::new(numbers(vocabulary * 2), [vocabulary, 2]), &device);
        for direction in [Direction::Forward, Direction::Reverse] {
            let divergence = Divergence { direction, temperature: 2.0, vocabulary };
            let output = OutputLayer::from(Weight::from(constant(weight.clone())));
            let teacher = OutputLayer::from(Weight::from(weight.clone()));
            let x = constant(hidden.clone()).require_grad();
            let (sum, graph) = divergence.of(x.clone(), &output, (&hidden, &teacher), &(0..tokens).collect::<Vec<_>>());
            let mut gradients = graph.backward();
            assert!(sum.abs() < 1e-6, "{sum}");
            let gradient = values(x.grad_remove(&mut gradients).unwrap());
            assert!(gradient.iter().all(|value| value.abs() < 1e-5), "{direction:?}");
        }
    }
}
