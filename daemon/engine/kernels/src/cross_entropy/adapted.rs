//! The same with a low-rank adapter on the output layer: a chunk's logits get `x·Bᵀ` more, where `x` is what A has made of
//! the hidden states. Neither these logits nor `W + s·B·A` ever exist whole.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Flex, backend_extension};
use burn_flex::FlexTensor;

use super::{CrossEntropy, Forward, LossRule, Targets, Wanted, forward, scores};
use crate::buffer::{contiguous, elements, shape2, tensor};
use crate::matmul::{View, Write, matmul};
use crate::matrix::Matrix;
use crate::packed::Packed;

/// Both sides of an adapter's second product.
pub(super) struct LowRank {
    /// `[tokens, rank]`.
    x: FlexTensor,
    /// `[vocabulary, rank]`.
    b: FlexTensor,
}

impl LowRank {
    fn new(x: FlexTensor, b: FlexTensor) -> Self {
        Self { x: contiguous(x), b: contiguous(b) }
    }

    pub(super) fn rank(&self) -> usize {
        shape2(&self.b)[1]
    }

    fn b(&self) -> View<'_> {
        View::new(elements(&self.b), shape2(&self.b))
    }

    /// Adds its share to the logits of some rows, and returns these rows of `x`, which it puts into `gathered`.
    pub(super) fn add_to<'a>(&self, logits: &mut [f32], rows: &[usize], gathered: &'a mut [f32]) -> View<'a> {
        let rank = self.rank();
        for (row, gathered) in rows.iter().zip(gathered.chunks_mut(rank)) {
            gathered.copy_from_slice(&elements(&self.x)[row * rank..][..rank]);
        }
        let gathered = View::new(&gathered[..rows.len() * rank], [rows.len(), rank]);
        matmul(logits, Write::Accumulate, 1.0, gathered, self.b().t());
        gathered
    }
}

/// The gradients of both sides, as they add up from chunk to chunk.
pub(super) struct Gradients<'a> {
    low: &'a LowRank,
    x: Vec<f32>,
    b: Vec<f32>,
    scratch: Vec<f32>,
}

impl<'a> Gradients<'a> {
    pub(super) fn new(low: &'a LowRank) -> Self {
        let len = |tensor: &FlexTensor| shape2(tensor).iter().product();
        Self { low, x: vec![0.0; len(&low.x)], b: vec![0.0; len(&low.b)], scratch: Vec::new() }
    }

    /// Takes in the gradient of a chunk's logits; `x` and `rows` are the chunk's.
    pub(super) fn add(&mut self, logits: View<'_>, x: View<'_>, rows: &[usize]) {
        let rank = self.low.rank();
        self.scratch.resize(rows.len() * rank, 0.0);
        matmul(&mut self.scratch, Write::Replace, 1.0, logits, self.low.b());
        for (row, gradient) in rows.iter().zip(self.scratch.chunks(rank)) {
            self.x[row * rank..][..rank].copy_from_slice(gradient);
        }
        matmul(&mut self.b, Write::Accumulate, 1.0, logits.t(), x);
    }

    pub(super) fn finish(self) -> LowRank {
        LowRank { x: tensor(self.x, shape2(&self.low.x)), b: tensor(self.b, shape2(&self.low.b)) }
    }
}

#[backend_extension(Flex, Autodiff)]
pub(super) trait AdaptedCrossEntropyOp: Backend {
    fn adapted_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        x: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self>;

    fn adapted_packed_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: Packed,
        x: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self>;

    fn adapted_score_targets(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        x: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self>;

    fn adapted_packed_score_targets(
        hidden: FloatTensor<Self>,
        weight: Packed,
        x: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self>;
}

impl AdaptedCrossEntropyOp for Flex {
    fn adapted_cross_entropy(
        hidden: FlexTensor,
        weight: FlexTensor,
        x: FlexTensor,
        b: FlexTensor,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FlexTensor {
        loss(hidden, &Matrix::dense(weight, rule.products), &LowRank::new(x, b), rule, &targets)
    }

    fn adapted_packed_cross_entropy(
        hidden: FlexTensor,
        weight: Packed,
        x: FlexTensor,
        b: FlexTensor,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FlexTensor {
        loss(hidden, &Matrix::packed(weight, rule.products), &LowRank::new(x, b), rule, &targets)
    }

    fn adapted_score_targets(
        hidden: FlexTensor,
        weight: FlexTensor,
        x: FlexTensor,
        b: FlexTensor,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FlexTensor {
        let (weight, low) = (Matrix::dense(weight, rule.products), LowRank::new(x, b));
        scores(&contiguous(hidden), &weight, Some(&low), rule.soft_cap, &targets)
    }

    fn adapted_packed_score_targets(
        hidden: FlexTensor,
        weight: Packed,
        x: FlexTensor,
        b: FlexTensor,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FlexTensor {
        let (weight, low) = (Matrix::packed(weight, rule.products), LowRank::new(x, b));
        scores(&contiguous(hidden), &weight, Some(&low), rule.soft_cap, &targets)
    }
}

/// Without gradients.
fn loss(hidden: FlexTensor, weight: &Matrix, low: &LowRank, rule: LossRule, targets: &Targets) -> FlexTensor {
    forward(&contiguous(hidden), weight, Some(low), rule, targets, Wanted::default()).loss
}

impl<C: CheckpointStrategy> AdaptedCrossEntropyOp for Autodiff<Flex, C> {
    fn adapted_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        x: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self> {
        let wanted = Wanted { hidden: hidden.is_tracked(), weight: weight.is_tracked(), low: true };
        let nodes = [hidden.node(), weight.node(), x.node(), b.node()];
        let hidden = contiguous(hidden.into_primitive());
        let weight = Matrix::dense(weight.into_primitive(), rule.products);
        let low = LowRank::new(x.into_primitive(), b.into_primitive());
        match CrossEntropy.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let Forward { loss, hidden_grad, weight_grad, low_grads } =
                    forward(&hidden, &weight, Some(&low), rule, &targets, wanted);
                let (x, b) = low_grads.map(|low| (low.x, low.b)).unzip();
                prep.finish([hidden_grad, weight_grad, x, b], loss)
            }
            OpsKind::UnTracked(prep) => prep.finish(loss(hidden, &weight, &low, rule, &targets)),
        }
    }

    fn adapted_packed_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: Packed,
        x: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self> {
        let wanted = Wanted { hidden: hidden.is_tracked(), weight: false, low: true };
        let nodes = [hidden.node(), x.node(), b.node()];
        let (hidden, weight) = (contiguous(hidden.into_primitive()), Matrix::packed(weight, rule.products));
        let low = LowRank::new(x.into_primitive(), b.into_primitive());
        match CrossEntropy.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let Forward { loss, hidden_grad, low_grads, .. } =
                    forward(&hidden, &weight, Some(&low), rule, &targets, wanted);
                let (x, b) = low_grads.map(|low| (low.x, low.b)).unzip();
                prep.finish([hidden_grad, x, b], loss)
            }
            OpsKind::UnTracked(prep) => prep.finish(loss(hidden, &weight, &low, rule, &targets)),
        }
    }

    fn adapted_score_targets(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        x: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self> {
        let [hidden, weight, x, b] = [hidden, weight, x, b].map(|tensor| tensor.into_primitive());
        Self::from_inner(Flex::adapted_score_targets(hidden, weight, x, b, rule, targets))
    }

    fn adapted_packed_score_targets(
        hidden: FloatTensor<Self>,
        weight: Packed,
        x: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self> {
        let [hidden, x, b] = [hidden, x, b].map(|tensor| tensor.into_primitive());
        Self::from_inner(Flex::adapted_packed_score_targets(hidden, weight, x, b, rule, targets))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::super::{Loss, OutputLayer, linear_loss, reference, score_reference, score_targets};
    use super::*;
    use crate::packed::testing::every_form;
    use crate::testing::{assert_close, random, track};
    use crate::{Dropout, Factors, Weight};

    type LossOp = fn(Tensor<2>, &OutputLayer, Arc<Targets>, Loss) -> Tensor<1>;
    type ScoreOp = fn(Tensor<2>, &OutputLayer, Arc<Targets>) -> Tensor<2>;

    /// Loss and scores, and the gradients of hidden states, A, B and, where it is trained, of the weight.
    #[test]
    fn loss_scores_and_gradients_equal_the_reference() {
        crate::simd::testing::at_every_level(|level| {
            let packed = every_form([37, 64], 2).into_iter().map(|(name, packed)| (name, Weight::from(packed)));
            let dense = ("dense".to_owned(), Weight::from(track(&random([37, 64], 2))));
            for (name, weight) in packed.chain([dense]) {
                let targets = Arc::new(Targets {
                    rows: vec![0, 3, 4, 8],
                    tokens: vec![36, 0, 5, 5],
                    weights: Some(vec![0.5, -2.0, 1.0, 0.0]),
                });
                let dropout = Some(Dropout { probability: 0.3, seed: 7 });
                for (soft_cap, dropout) in [(None, None), (Some(2.5), dropout)] {
                    let run = |loss: LossOp, score: ScoreOp| {
                        let hidden = track(&random([9, 64], 1).mul_scalar(0.1));
                        let (a, b) = (track(&random([3, 64], 3)), track(&random([37, 3], 4)));
                        let adapter = Some(Factors { a: a.clone(), b: b.clone(), scale: 0.5, dropout });
                        let output = OutputLayer { weight: weight.clone(), soft_cap, adapter };
                        let loss = loss(hidden.clone(), &output, targets.clone(), Loss::default());
                        let grads = (loss.clone() * 0.25).backward();
                        let mut gradients = vec![loss.inner().unsqueeze()];
                        gradients.extend([&hidden, &a, &b].map(|leaf| leaf.grad(&grads).unwrap()));
                        if let crate::Numbers::Dense(weight) = &weight.numbers {
                            gradients.push(weight.grad(&grads).unwrap());
                        }
                        gradients.push(score(hidden, &output, targets.clone()).inner());
                        gradients
                    };
                    let (ours, theirs) = (run(linear_loss, score_targets), run(reference, score_reference));
                    for (index, (ours, theirs)) in ours.into_iter().zip(theirs).enumerate() {
                        assert_close(ours, theirs, 1e-4, &format!("{level:?} {name} {soft_cap:?} {index}"));
                    }
                }
            }
        });
    }
}
