//! The output layer fused with cross-entropy, at target positions only and in chunks: the `[targets, vocabulary]`
//! logits never exist whole.
//!
//! The loss is a sum, so the gradient of the hidden states can be made beside it in the same pass (as in Liger Kernel,
//! arXiv 2410.10989) and only scaled in the backward.

mod adapted;
mod rows;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::device::on_cpu;
use crate::matmul::{View, Write};
use crate::matrix::Matrix;
use crate::packed::Packed;
use crate::simd;
use crate::soft_cap::soft_capped;
use crate::{Factors, Numbers, Products, Weight, dropout, linear};
use adapted::{AdaptedCrossEntropyOp, LowRank};

/// Which rows of the hidden states predict which token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// Rows of the hidden states, ascending.
    pub rows: Vec<usize>,
    /// The token that the row at the same place must predict.
    pub tokens: Vec<u32>,
    /// What each one's loss is multiplied by; None for 1.
    pub weights: Option<Vec<f32>>,
}

impl Targets {
    /// How many tokens are predicted.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn check(&self, hidden: [usize; 2], vocabulary: usize) {
        assert_eq!(self.rows.len(), self.tokens.len());
        assert!(self.weights.as_ref().is_none_or(|weights| weights.len() == self.len()));
        assert!(self.rows.iter().all(|&row| row < hidden[0]), "target rows lie inside the batch");
        assert!(self.tokens.iter().all(|&token| (token as usize) < vocabulary), "target tokens lie in the vocabulary");
    }
}

/// What turns hidden states into logits: `hidden·weightᵀ`, what a low-rank adapter adds, and with a cap
/// `cap · tanh(that / cap)`.
#[derive(Debug, Clone)]
pub struct OutputLayer {
    /// `[vocabulary, features]`.
    pub weight: Weight,
    /// Bounds every logit smoothly (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f32>,
    /// Of `features` inputs and `vocabulary` outputs.
    pub adapter: Option<Factors>,
}

impl From<Weight> for OutputLayer {
    fn from(weight: Weight) -> Self {
        Self { weight, soft_cap: None, adapter: None }
    }
}

impl OutputLayer {
    /// `[rows, vocabulary]` of a few rows of hidden states, `[rows, features]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        soft_capped(linear(hidden, &self.weight, self.adapter.clone()), self.soft_cap)
    }

    /// What the adapter makes of hidden states, `s·dropout(hidden)·Aᵀ`: `[tokens, rank]`; and its B, which turns that into
    /// what is added to the logits.
    fn low_rank(&self, hidden: &Tensor<2>) -> Option<(Tensor<2>, Tensor<2>)> {
        let Factors { a, b, scale, dropout: share } = self.adapter.clone()?;
        let input = share.map_or_else(|| hidden.clone(), |share| dropout(hidden.clone(), share));
        Some((linear(input, &a.into(), None) * scale, b))
    }
}

/// What is added up over the targets, beside the plain −log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// ε of label smoothing (Szegedy et al. 2015, arXiv 1512.00567; as transformers' `LabelSmoother`): a target's loss is
    /// `(1 − ε)·(−log p[target]) + ε·mean(−log p)`.
    pub smoothing: f32,
    /// α of R-Drop (Liang et al. 2021, arXiv 2106.14448). Targets come in pairs of the same token; each pair adds
    /// `α·½(KL(p₁‖p₂) + KL(p₂‖p₁))` to its two losses.
    pub consistency: Option<f32>,
}

impl Loss {
    /// Targets that belong together.
    fn group(self) -> usize {
        if self.consistency.is_some() { 2 } else { 1 }
    }
}

/// How a row of logits becomes a loss.
#[derive(Debug, Clone, Copy)]
pub struct LossRule {
    soft_cap: Option<f32>,
    loss: Loss,
    products: Products,
}

/// Σ −weight · log softmax(logits)[target] over all targets, as a tensor of one element (nats). `hidden` is
/// `[tokens, features]`.
pub fn linear_cross_entropy(hidden: Tensor<2>, output: &OutputLayer, targets: Arc<Targets>) -> Tensor<1> {
    linear_loss(hidden, output, targets, Loss::default())
}

/// The same with more to the loss of each target.
pub fn linear_loss(hidden: Tensor<2>, output: &OutputLayer, targets: Arc<Targets>, loss: Loss) -> Tensor<1> {
    let OutputLayer { weight, soft_cap, .. } = output;
    targets.check(hidden.dims(), weight.dims()[0]);
    assert!(targets.len().is_multiple_of(loss.group()), "targets come in pairs");
    assert!(loss.consistency.is_none() || targets.weights.is_none(), "pairs have no weights");
    if !on_cpu(&hidden) {
        return reference(hidden, output, targets, loss);
    }
    let low = output.low_rank(&hidden).map(|(x, b)| (x.into_dispatch(), b.into_dispatch()));
    let (hidden, rule) = (hidden.into_dispatch(), LossRule { soft_cap: *soft_cap, loss, products: weight.products });
    Tensor::from_dispatch(match (&weight.numbers, low) {
        (Numbers::Dense(weight), None) => {
            <Dispatch as CrossEntropyOp>::linear_cross_entropy(hidden, weight.clone().into_dispatch(), rule, targets)
        }
        (Numbers::Packed(weight), None) => {
            <Dispatch as CrossEntropyOp>::packed_linear_cross_entropy(hidden, weight.clone(), rule, targets)
        }
        (Numbers::Dense(weight), Some((x, b))) => {
            let weight = weight.clone().into_dispatch();
            <Dispatch as AdaptedCrossEntropyOp>::adapted_cross_entropy(hidden, weight, x, b, rule, targets)
        }
        (Numbers::Packed(weight), Some((x, b))) => <Dispatch as AdaptedCrossEntropyOp>::adapted_packed_cross_entropy(
            hidden,
            weight.clone(),
            x,
            b,
            rule,
            targets,
        ),
    })
}

/// Of each target its −log-probability (nats) and whether it is the most probable token (1 or 0): `[targets, 2]`. Its
/// weight has no bearing on them. Not differentiable.
pub fn score_targets(hidden: Tensor<2>, output: &OutputLayer, targets: Arc<Targets>) -> Tensor<2> {
    let OutputLayer { weight, soft_cap, .. } = output;
    targets.check(hidden.dims(), weight.dims()[0]);
    if !on_cpu(&hidden) {
        return score_reference(hidden, output, targets);
    }
    let rule = LossRule { soft_cap: *soft_cap, loss: Loss::default(), products: weight.products };
    let low = output.low_rank(&hidden).map(|(x, b)| (x.into_dispatch(), b.into_dispatch()));
    let hidden = hidden.into_dispatch();
    Tensor::from_dispatch(match (&weight.numbers, low) {
        (Numbers::Dense(weight), None) => {
            <Dispatch as CrossEntropyOp>::score_targets(hidden, weight.clone().into_dispatch(), rule, targets)
        }
        (Numbers::Packed(weight), None) => {
            <Dispatch as CrossEntropyOp>::packed_score_targets(hidden, weight.clone(), rule, targets)
        }
        (Numbers::Dense(weight), Some((x, b))) => {
            let weight = weight.clone().into_dispatch();
            <Dispatch as AdaptedCrossEntropyOp>::adapted_score_targets(hidden, weight, x, b, rule, targets)
        }
        (Numbers::Packed(weight), Some((x, b))) => {
            let weight = weight.clone();
            <Dispatch as AdaptedCrossEntropyOp>::adapted_packed_score_targets(hidden, weight, x, b, rule, targets)
        }
    })
}

/// The loss by burn's own ops.
pub fn reference(hidden: Tensor<2>, output: &OutputLayer, targets: Arc<Targets>, loss: Loss) -> Tensor<1> {
    let device = hidden.device();
    let mut rest = targets.weights.clone();
    let losses = log_probabilities(hidden, output, &targets, loss.group()).map(|(log_p, tokens)| {
        let of_target = -log_p.clone().gather(1, tokens.unsqueeze_dim(1)).squeeze_dim::<1>(1);
        let of_all = -log_p.clone().mean_dim(1).squeeze_dim::<1>(1);
        let losses = of_target * (1.0 - loss.smoothing) + of_all * loss.smoothing;
        let sum = match &mut rest {
            None => losses.sum(),
            Some(rest) => {
                let weights: Vec<f32> = rest.drain(..losses.dims()[0]).collect();
                let shape = [weights.len()];
                (losses.clone() * Tensor::from_data(TensorData::new(weights, shape), &losses.device())).sum()
            }
        };
        let Some(alpha) = loss.consistency else { return sum };
        let [rows, vocabulary] = log_p.dims();
        let pairs = log_p.reshape([rows / 2, 2, vocabulary]);
        let [first, second] = [0, 1].map(|index| pairs.clone().narrow(1, index, 1));
        sum + ((first.clone().exp() - second.clone().exp()) * (first - second)).sum() * (0.5 * alpha)
    });
    losses.reduce(|sum, loss| sum + loss).unwrap_or_else(|| Tensor::zeros([1], &device))
}

/// The scores by burn's own ops.
pub fn score_reference(hidden: Tensor<2>, output: &OutputLayer, targets: Arc<Targets>) -> Tensor<2> {
    let device = hidden.device();
    let scores: Vec<_> = log_probabilities(hidden, output, &targets, 1)
        .map(|(log_probabilities, tokens)| {
            let target = log_probabilities.clone().gather(1, tokens.unsqueeze_dim(1));
            let is_largest = target.clone().greater_equal(log_probabilities.max_dim(1)).float();
            Tensor::cat(vec![-target, is_largest], 1)
        })
        .collect();
    if scores.is_empty() { Tensor::zeros([0, 2], &device) } else { Tensor::cat(scores, 0) }
}

/// Log-probabilities of the whole vocabulary, and the targets' tokens, of one chunk of targets after the other.
fn log_probabilities(
    hidden: Tensor<2>,
    output: &OutputLayer,
    targets: &Targets,
    group: usize,
) -> impl Iterator<Item = (Tensor<2>, Tensor<1, Int>)> {
    let device = hidden.device();
    let ints = move |values: Vec<i64>| {
        let len = values.len();
        Tensor::<1, Int>::from_data(TensorData::new(values, [len]), &device)
    };
    let size = chunk_size(output.weight.dims()[0], targets, group);
    let (weight, soft_cap) = (output.weight.to_tensor(&hidden.device()).transpose(), output.soft_cap);
    let low = output.low_rank(&hidden).map(|(x, b)| (x, b.transpose()));
    targets.rows.chunks(size).zip(targets.tokens.chunks(size)).map(move |(rows, tokens)| {
        let rows = ints(rows.iter().map(|&row| row as i64).collect());
        let tokens = ints(tokens.iter().map(|&token| i64::from(token)).collect());
        let logits = hidden.clone().select(0, rows.clone()).matmul(weight.clone());
        let logits = match &low {
            None => logits,
            Some((x, b)) => logits + x.clone().select(0, rows).matmul(b.clone()),
        };
        let logits = soft_capped(logits, soft_cap);
        (burn::tensor::activation::log_softmax(logits, 1), tokens)
    })
}

#[backend_extension(Flex, Autodiff)]
pub trait CrossEntropyOp: Backend {
    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self>;

    fn packed_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: Packed,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self>;

    fn score_targets(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self>;

    fn packed_score_targets(
        hidden: FloatTensor<Self>,
        weight: Packed,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self>;
}

impl CrossEntropyOp for Flex {
    fn linear_cross_entropy(
        hidden: FlexTensor,
        weight: FlexTensor,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FlexTensor {
        forward(&contiguous(hidden), &Matrix::dense(weight, rule.products), None, rule, &targets, Wanted::default())
            .loss
    }

    fn packed_linear_cross_entropy(
        hidden: FlexTensor,
        weight: Packed,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FlexTensor {
        forward(&contiguous(hidden), &Matrix::packed(weight, rule.products), None, rule, &targets, Wanted::default())
            .loss
    }

    fn score_targets(hidden: FlexTensor, weight: FlexTensor, rule: LossRule, targets: Arc<Targets>) -> FlexTensor {
        scores(&contiguous(hidden), &Matrix::dense(weight, rule.products), None, rule.soft_cap, &targets)
    }

    fn packed_score_targets(hidden: FlexTensor, weight: Packed, rule: LossRule, targets: Arc<Targets>) -> FlexTensor {
        scores(&contiguous(hidden), &Matrix::packed(weight, rule.products), None, rule.soft_cap, &targets)
    }
}

impl<C: CheckpointStrategy> CrossEntropyOp for Autodiff<Flex, C> {
    fn linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self> {
        let wanted = Wanted { hidden: hidden.is_tracked(), weight: weight.is_tracked(), low: false };
        let nodes = [hidden.node(), weight.node()];
        let hidden = contiguous(hidden.into_primitive());
        let weight = Matrix::dense(weight.into_primitive(), rule.products);
        match CrossEntropy.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let Forward { loss, hidden_grad, weight_grad, .. } =
                    forward(&hidden, &weight, None, rule, &targets, wanted);
                prep.finish([hidden_grad, weight_grad], loss)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(forward(&hidden, &weight, None, rule, &targets, Wanted::default()).loss)
            }
        }
    }

    fn packed_linear_cross_entropy(
        hidden: FloatTensor<Self>,
        weight: Packed,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self> {
        let node = hidden.node();
        let (hidden, weight) = (contiguous(hidden.into_primitive()), Matrix::packed(weight, rule.products));
        match CrossEntropy.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let Forward { loss, hidden_grad, .. } =
                    forward(&hidden, &weight, None, rule, &targets, Wanted { hidden: true, ..Wanted::default() });
                prep.finish([hidden_grad], loss)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(forward(&hidden, &weight, None, rule, &targets, Wanted::default()).loss)
            }
        }
    }

    fn score_targets(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self> {
        Self::from_inner(Flex::score_targets(hidden.into_primitive(), weight.into_primitive(), rule, targets))
    }

    fn packed_score_targets(
        hidden: FloatTensor<Self>,
        weight: Packed,
        rule: LossRule,
        targets: Arc<Targets>,
    ) -> FloatTensor<Self> {
        Self::from_inner(Flex::packed_score_targets(hidden.into_primitive(), weight, rule, targets))
    }
}

#[derive(Debug)]
struct CrossEntropy;

/// `N` is 2 where the weight may be trained and 1 where it is packed, and two more with an adapter; the forward has made the gradients already.
impl<const N: usize> Backward<Flex, N> for CrossEntropy {
    type State = [Option<FlexTensor>; N];

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = elements(&contiguous(grads.consume::<Flex>(&ops.node)))[0];
        for (node, grad) in ops.parents.into_iter().zip(ops.state) {
            if let (Some(node), Some(mut grad)) = (node, grad) {
                grad.storage_mut::<f32>().par_chunks_mut(16 * 1024).for_each(|chunk| simd::scale(chunk, upstream));
                grads.register::<Flex>(node.id, grad);
            }
        }
    }
}

/// Which gradients the forward makes beside the loss.
#[derive(Clone, Copy, Default)]
struct Wanted {
    hidden: bool,
    weight: bool,
    /// Of both sides of an adapter's second product.
    low: bool,
}

struct Forward {
    loss: FlexTensor,
    hidden_grad: Option<FlexTensor>,
    weight_grad: Option<FlexTensor>,
    low_grads: Option<LowRank>,
}

/// The logits of some targets, in row-major order.
struct Chunk<'a> {
    /// Index of the first target.
    first: usize,
    /// The hidden states of these targets, `[targets, features]`.
    hidden: View<'a>,
    /// What an adapter makes of them, `[targets, rank]`.
    low: Option<View<'a>>,
    logits: &'a mut [f32],
    tokens: &'a [u32],
    rows: &'a [usize],
    vocabulary: usize,
}

/// Bytes of logits that exist at a time.
pub const CHUNK_BYTES: usize = 48 << 20;

/// Targets whose logits exist at a time; a multiple of `group`. The whole weight is read for each chunk, so there are as few
/// as may be, and none is much smaller than another.
fn chunk_size(vocabulary: usize, targets: &Targets, group: usize) -> usize {
    let largest = (CHUNK_BYTES / 4 / vocabulary / group).max(1) * group;
    targets.len().div_ceil(targets.len().div_ceil(largest).max(1)).next_multiple_of(group).max(group)
}

/// Calls `each` with the logits of one chunk of targets after the other.
fn for_each_chunk(
    hidden: &FlexTensor,
    weight: &Matrix,
    low: Option<&LowRank>,
    targets: &Targets,
    group: usize,
    mut each: impl FnMut(Chunk<'_>),
) {
    let [vocabulary, features] = weight.dims();
    let size = chunk_size(vocabulary, targets, group);
    let mut logits = uninit(size * vocabulary);
    let mut gathered = uninit(size * features);
    let mut gathered_low = uninit(size * low.map_or(0, LowRank::rank));
    for (index, (rows, tokens)) in targets.rows.chunks(size).zip(targets.tokens.chunks(size)).enumerate() {
        for (row, gathered) in rows.iter().zip(gathered.chunks_mut(features)) {
            gathered.copy_from_slice(&elements(hidden)[row * features..][..features]);
        }
        let gathered = &gathered[..rows.len() * features];
        let hidden = View::new(gathered, [rows.len(), features]);
        let logits = &mut logits[..rows.len() * vocabulary];
        weight.times_transposed(&weight.products.side(hidden), logits);
        let low = low.map(|low| low.add_to(logits, rows, &mut gathered_low));
        each(Chunk { first: index * size, hidden, low, logits, tokens, rows, vocabulary });
    }
}

fn scores(
    hidden: &FlexTensor,
    weight: &Matrix,
    low: Option<&LowRank>,
    soft_cap: Option<f32>,
    targets: &Targets,
) -> FlexTensor {
    let mut scores = uninit(targets.len() * 2);
    for_each_chunk(hidden, weight, low, targets, 1, |chunk| {
        let scores = &mut scores[chunk.first * 2..][..chunk.tokens.len() * 2];
        let rows = chunk.logits.par_chunks_mut(chunk.vocabulary).zip(chunk.tokens);
        rows.zip(scores.par_chunks_mut(2)).for_each(|((logits, &token), score)| {
            if let Some(cap) = soft_cap {
                simd::soft_cap(logits, cap);
            }
            let target = logits[token as usize];
            let largest = simd::max(logits);
            score[1] = f32::from(target == largest);
            score[0] = simd::exp_sum(logits, largest).ln() + largest - target;
        });
    });
    tensor(scores, [targets.len(), 2])
}

fn forward(
    hidden: &FlexTensor,
    weight: &Matrix,
    low: Option<&LowRank>,
    rule: LossRule,
    targets: &Targets,
    wanted: Wanted,
) -> Forward {
    let ([tokens, features], [vocabulary, _]) = (shape2(hidden), weight.dims());
    let mut loss = 0.0f64;
    let mut hidden_grad = wanted.hidden.then(|| vec![0.0; tokens * features]);
    let mut weight_grad = wanted.weight.then(|| vec![0.0; vocabulary * features]);
    let mut low_grads = low.filter(|_| wanted.low).map(adapted::Gradients::new);
    let mut scratch = Vec::new();
    let (group, make_gradients) = (rule.loss.group(), wanted.hidden || wanted.weight || wanted.low);
    for_each_chunk(hidden, weight, low, targets, group, |chunk| {
        // Each row of logits becomes the gradient of its loss.
        let rows = chunk.logits.par_chunks_mut(group * vocabulary).zip(chunk.tokens.par_chunks(group)).enumerate();
        let loss_of = |(index, (logits, tokens)): (usize, (&mut [f32], &[u32]))| {
            let loss = rows::loss(rule, logits, tokens, make_gradients);
            let Some(weights) = &targets.weights else { return loss };
            let weight = weights[chunk.first + index];
            if make_gradients {
                simd::scale(logits, weight);
            }
            weight * loss
        };
        let losses: Vec<f32> = rows.map(loss_of).collect();

        loss += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        let gradient = View::new(chunk.logits, [chunk.tokens.len(), vocabulary]);
        if let Some(hidden_grad) = &mut hidden_grad {
            scratch.resize(chunk.tokens.len() * features, 0.0);
            weight.times_wide(gradient, &mut scratch);
            for (row, grad) in chunk.rows.iter().zip(scratch.chunks(features)) {
                hidden_grad[row * features..][..features].copy_from_slice(grad);
            }
        }
        if let Some(weight_grad) = &mut weight_grad {
            weight.products.side(gradient.t()).matmul(weight_grad, Write::Accumulate, 1.0, chunk.hidden);
        }
        if let (Some(low_grads), Some(low)) = (&mut low_grads, chunk.low) {
            low_grads.add(gradient, low, chunk.rows);
        }
    });
    Forward {
        loss: tensor(vec![loss as f32], [1]),
        hidden_grad: hidden_grad.map(|grad| tensor(grad, [tokens, features])),
        weight_grad: weight_grad.map(|grad| tensor(grad, [vocabulary, features])),
        low_grads: low_grads.map(adapted::Gradients::finish),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::testing::every_form;
    use crate::testing::{assert_close, random, track, values};

    type Op = fn(Tensor<2>, &OutputLayer, Arc<Targets>) -> Tensor<1>;

    fn plain(hidden: Tensor<2>, output: &OutputLayer, targets: Arc<Targets>) -> Tensor<1> {
        reference(hidden, output, targets, Loss::default())
    }

    fn targets(rows: &[usize], tokens: &[u32]) -> Arc<Targets> {
        Arc::new(Targets { rows: rows.to_vec(), tokens: tokens.to_vec(), weights: None })
    }

    #[test]
    fn loss_and_gradients_equal_the_reference() {
        crate::simd::testing::at_every_level(|level| {
            let several = targets(&[0, 3, 4, 8], &[36, 0, 5, 5]);
            let weights = Some(vec![0.5, -2.0, 1.0, 0.0]);
            let weighted = Arc::new(Targets { weights, ..Targets::clone(&several) });
            let cases = [([1, 3], 2, targets(&[0], &[1])), ([9, 20], 37, several.clone()), ([9, 20], 37, weighted)];
            let capped = [None, Some(2.5)].map(|soft_cap| cases.clone().map(|case| (case, soft_cap)));
            for ((shape, vocabulary, targets), soft_cap) in capped.into_iter().flatten() {
                let (hidden, weight) = (random(shape, 1), random([vocabulary, shape[1]], 2));
                let run = |op: Op| {
                    let (hidden, weight) = (track(&hidden), track(&weight));
                    let output = OutputLayer { weight: weight.clone().into(), soft_cap, adapter: None };
                    let loss = op(hidden.clone(), &output, targets.clone());
                    let grads = (loss.clone() * 0.25).backward();
                    (loss.inner(), hidden.grad(&grads).unwrap(), weight.grad(&grads).unwrap())
                };
                let (ours, theirs) = (run(linear_cross_entropy), run(plain));
                let what = format!("{level:?} {shape:?} {vocabulary} {soft_cap:?}");
                assert_close(ours.0, theirs.0, 1e-5, &what);
                assert_close(ours.1, theirs.1, 1e-5, &what);
                assert_close(ours.2, theirs.2, 1e-5, &what);
            }
        });
    }

    #[test]
    fn a_packed_weight_gives_the_results_of_its_decoded_matrix() {
        crate::simd::testing::at_every_level(|level| {
            let targets = targets(&[0, 3, 4, 8, 9, 10], &[36, 0, 5, 5, 1, 2]);
            for (name, packed) in every_form([37, 256], 2) {
                let output = OutputLayer { weight: packed.into(), soft_cap: Some(30.0), adapter: None };
                let run = |op: Op| {
                    let hidden = track(&random([11, 256], 1).mul_scalar(0.01));
                    let loss = op(hidden.clone(), &output, targets.clone());
                    let grads = (loss.clone() * 0.25).backward();
                    (loss.inner(), hidden.grad(&grads).unwrap())
                };
                let (ours, theirs) = (run(linear_cross_entropy), run(plain));
                assert_close(ours.0, theirs.0, 1e-5, &format!("{level:?} {name}"));
                assert_close(ours.1, theirs.1, 1e-4, &format!("{level:?} {name}"));
            }
        });
    }

    #[test]
    fn several_chunks_make_the_same_as_one() {
        // While no other test changes the level.
        crate::simd::testing::at_every_level(|level| {
            // 15 million logits: two chunks of at most 48 MiB.
            let (hidden, weight) = (track(&random([50, 16], 1)), Weight::from(random([300_000, 16], 2)));
            let output = OutputLayer::from(weight);
            let targets = Arc::new(Targets {
                rows: (0..50).collect(),
                tokens: (0..50).map(|i| i * 5_999).collect(),
                weights: Some((0..50).map(|i| i as f32 / 30.0 - 0.5).collect()),
            });
            let ours = linear_cross_entropy(hidden.clone(), &output, targets.clone());
            let theirs = plain(hidden.clone(), &output, targets);
            let (our_grads, their_grads) = (ours.clone().backward(), theirs.clone().backward());
            assert_close(ours.inner(), theirs.inner(), 1e-5, &format!("{level:?} loss"));
            assert_close(
                hidden.grad(&our_grads).unwrap(),
                hidden.grad(&their_grads).unwrap(),
                1e-5,
                &format!("{level:?} gradient"),
            );
        });
    }

    #[test]
    fn scores_add_up_to_the_loss_and_know_the_winner() {
        let packed = every_form([11, 64], 2).into_iter().map(|(_, packed)| Weight::from(packed));
        for weight in packed.chain([random([11, 64], 2).into()]) {
            for soft_cap in [None, Some(4.0)] {
                check_scores(&random([6, 64], 1), &OutputLayer { weight: weight.clone(), soft_cap, adapter: None });
            }
        }
    }

    fn check_scores(hidden: &Tensor<2>, output: &OutputLayer) {
        let logits = values(hidden.clone().matmul(output.weight.to_tensor(&hidden.device()).transpose()));
        let best: Vec<u32> = logits
            .chunks(11)
            .map(|row| (0..11u32).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize])).unwrap())
            .collect();
        let tokens = [best[0], (best[1] + 1) % 11, best[5]];
        let targets = targets(&[0, 1, 5], &tokens);
        let scores = values(score_targets(hidden.clone(), output, targets.clone()));
        assert_eq!([scores[1], scores[3], scores[5]], [1.0, 0.0, 1.0]);
        let by_burn = values(score_reference(hidden.clone(), output, targets.clone()));
        for (ours, theirs) in scores.iter().zip(&by_burn) {
            assert!((ours - theirs).abs() < 1e-4 * theirs.abs().max(1.0), "{scores:?}, {by_burn:?}");
        }
        let loss = values(plain(hidden.clone(), output, targets))[0];
        assert!((scores[0] + scores[2] + scores[4] - loss).abs() < 1e-4 * loss.max(1.0));
    }

    /// LabelSmoother of transformers and R-Drop in PyTorch (`scripts/golden/losses.py`).
    #[test]
    fn smoothing_and_consistency_equal_pytorch_and_the_reference() {
        use justtrain_weights::safetensors::SafetensorsFile;
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/losses.safetensors");
        let goldens = SafetensorsFile::open(&path).unwrap();
        let device = burn::tensor::Device::flex().autodiff();
        let read = |name: &str, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(goldens.read_f32(name).unwrap(), shape), &device)
        };
        let (hidden, weight) = (read("hidden", [12, 20]), read("weight", [37, 20]));
        let targets = targets(&[0, 6, 1, 7, 2, 8, 5, 11], &[3, 3, 36, 36, 0, 0, 5, 5]);
        for (case, loss, soft_cap) in [
            ("smoothing", Loss { smoothing: 0.1, consistency: None }, None),
            ("consistency", Loss { smoothing: 0.0, consistency: Some(2.0) }, None),
            ("both", Loss { smoothing: 0.2, consistency: Some(0.7) }, Some(3.0)),
        ] {
            for op in [linear_loss, reference] {
                let (hidden, weight) = (track(&hidden), track(&weight));
                let output = OutputLayer { weight: weight.clone().into(), soft_cap, adapter: None };
                let sum = op(hidden.clone(), &output, targets.clone(), loss);
                let grads = sum.clone().backward();
                let expected = |name: &str, shape| read(&format!("{case}.{name}"), shape).inner();
                assert_close(sum.inner().unsqueeze(), expected("loss", [1, 1]), 1e-5, case);
                assert_close(hidden.grad(&grads).unwrap(), expected("hidden", [12, 20]), 1e-4, case);
                assert_close(weight.grad(&grads).unwrap(), expected("weight", [37, 20]), 1e-4, case);
            }
        }
    }

    #[test]
    fn equal_predictions_have_nothing_to_agree_on() {
        let (hidden, weight) = (random([3, 8], 1), Weight::from(random([9, 8], 2)));
        let (twice, output) = (Tensor::cat(vec![hidden.clone(), hidden], 0), OutputLayer::from(weight));
        let targets = targets(&[0, 3, 1, 4], &[2, 2, 8, 8]);
        let loss =
            |consistency| linear_loss(twice.clone(), &output, targets.clone(), Loss { smoothing: 0.0, consistency });
        assert_close(loss(Some(5.0)).inner(), loss(None).inner(), 1e-6, "a pair that is one row twice");
    }
}
