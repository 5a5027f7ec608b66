//! Grouped-query attention over packed sequences, causal or to both sides, tiled with an online softmax (FlashAttention-2, Dao 2023,
//! arXiv 2307.08691): no token sees another sample, and nothing of size tokens × tokens is kept.
//!
//! Heads lie side by side, `[tokens, heads · head_dim]`, so that neither projection needs a transposed copy.

mod reference;
mod tiled;

use std::ops::Range;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::buffer::contiguous;
use crate::device::on_cpu;
use crate::kept::{Kept, stand_in};
use crate::{Buckets, Dropout, PositionBias, Products};
pub use reference::reference;
use tiled::{Inputs, backward, forward};

/// The heads of an attention layer. `query` is a multiple of `key_value` (grouped-query attention, arXiv 2305.13245).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub query: usize,
    pub key_value: usize,
    pub dim: usize,
}

impl Heads {
    fn group(self) -> usize {
        self.query / self.key_value
    }
}

/// How a query and a key become a score: `soft_cap · tanh(q·k·scale / soft_cap)`, or `q·k·scale` without a cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    pub scale: f32,
    /// Bounds every score smoothly (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f32>,
    /// A query sees no key that comes after it; else it sees every key of its segment.
    pub causal: bool,
    /// A query sees itself and the keys before it, this many together (sliding window, arXiv 2310.06825). Of causal
    /// attention only.
    pub window: Option<usize>,
    /// Of the softmax, while training.
    pub dropout: Option<Dropout>,
    /// What q, k, v and the result are rounded to.
    pub products: Products,
}

impl Scores {
    /// Causal, without cap, window and dropout.
    pub fn scaled(scale: f32) -> Self {
        Self { scale, soft_cap: None, causal: true, window: None, dropout: None, products: Products::F32 }
    }
}

/// Which rows belong together: the queries of one sequence and the keys that they may see.
///
/// In causal attention the last query stands at the last key, and each earlier query sees one key fewer: with as many
/// queries as keys that is a whole sequence, with fewer it is generation with a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Segments {
    /// Whole sequences one after the other; `starts` holds each one's first row and, last, the end of all.
    pub fn packed(starts: &[usize]) -> Self {
        let whole = |range: &[usize]| Segment { queries: range[0]..range[1], keys: range[0]..range[1] };
        Self(starts.windows(2).map(whole).collect())
    }

    /// Pairs of query rows and key rows.
    pub fn cached(pairs: impl IntoIterator<Item = (Range<usize>, Range<usize>)>) -> Self {
        Self(pairs.into_iter().map(|(queries, keys)| Segment { queries, keys }).collect())
    }

    /// Of each sequence the rows of its queries, and how many keys it has up to now.
    pub fn sequences(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        self.0.iter().map(|segment| (segment.queries.clone(), segment.keys.len()))
    }

    fn check(&self, query_rows: usize, key_rows: usize, causal: bool) {
        for Segment { queries, keys } in &self.0 {
            assert!(!causal || queries.len() <= keys.len(), "each query has a key of its own");
            assert!(queries.end <= query_rows && keys.end <= key_rows, "segments lie inside the batch");
        }
    }
}

/// `softmax(scores of q and k)·v` within each segment. `q` is `[queries, query heads · dim]`, `k` and `v`
/// `[keys, key/value heads · dim]`; the result has the shape of `q`. Rows of `q` outside every segment give zeros.
pub fn attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: Heads,
    segments: Arc<Segments>,
    scores: Scores,
) -> Tensor<2> {
    biased_attention(q, k, v, None, heads, segments, scores)
}

/// The same with `bias` added to the scores, where the last query stands at the last key.
pub fn biased_attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    bias: Option<PositionBias>,
    heads: Heads,
    segments: Arc<Segments>,
    scores: Scores,
) -> Tensor<2> {
    assert_ne!(scores.window, Some(0), "a query sees at least itself");
    assert!(scores.causal || scores.window.is_none(), "a window looks back");
    assert_eq!(heads.query % heads.key_value, 0);
    assert_eq!(q.dims()[1], heads.query * heads.dim);
    assert_eq!(k.dims()[1], heads.key_value * heads.dim);
    assert_eq!(k.dims(), v.dims());
    segments.check(q.dims()[0], k.dims()[0], scores.causal || bias.is_some());
    if let Some(PositionBias { table, buckets }) = &bias {
        assert_eq!(table.dims(), [buckets.count, heads.query]);
        assert!(scores.soft_cap.is_none(), "scores with a bias have no cap");
    }
    if !on_cpu(&q) {
        return reference(q, k, v, bias, heads, segments, scores);
    }
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(match bias {
        None => <Dispatch as AttentionOp>::attention(q, k, v, heads, segments, scores),
        Some(PositionBias { table, buckets }) => {
            let table = table.into_dispatch();
            <Dispatch as AttentionOp>::biased_attention(q, k, v, table, buckets, heads, segments, scores)
        }
    })
}

/// Which of all random numbers decides over a key for a query of a head.
fn dropout_place(query: usize, head: usize, key: usize, heads: Heads, key_rows: usize) -> usize {
    (query * heads.query + head) * key_rows + key
}

#[backend_extension(Flex, Autodiff)]
pub trait AttentionOp: Backend {
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: Heads,
        segments: Arc<Segments>,
        scores: Scores,
    ) -> FloatTensor<Self>;

    #[allow(clippy::too_many_arguments)]
    fn biased_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        table: FloatTensor<Self>,
        buckets: Buckets,
        heads: Heads,
        segments: Arc<Segments>,
        scores: Scores,
    ) -> FloatTensor<Self>;
}

impl AttentionOp for Flex {
    fn attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        heads: Heads,
        segments: Arc<Segments>,
        scores: Scores,
    ) -> FlexTensor {
        untracked([q, k, v], None, heads, segments, scores)
    }

    fn biased_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        table: FlexTensor,
        buckets: Buckets,
        heads: Heads,
        segments: Arc<Segments>,
        scores: Scores,
    ) -> FlexTensor {
        untracked([q, k, v], Some((table, buckets)), heads, segments, scores)
    }
}

impl<C: CheckpointStrategy> AttentionOp for Autodiff<Flex, C> {
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: Heads,
        segments: Arc<Segments>,
        scores: Scores,
    ) -> FloatTensor<Self> {
        tracked::<_, C>([q, k, v], None, heads, segments, scores)
    }

    fn biased_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        table: FloatTensor<Self>,
        buckets: Buckets,
        heads: Heads,
        segments: Arc<Segments>,
        scores: Scores,
    ) -> FloatTensor<Self> {
        tracked::<_, C>([q, k, v, table], Some(buckets), heads, segments, scores)
    }
}

fn untracked(
    qkv: [FlexTensor; 3],
    bias: Option<(FlexTensor, Buckets)>,
    heads: Heads,
    segments: Arc<Segments>,
    scores: Scores,
) -> FlexTensor {
    // Before the backward a block goes this way once more, and must give the same.
    let [q, k, v] = qkv.map(|x| Kept::new(x, scores.products).1);
    let (output, _) = forward(&Inputs::new([q, k, v], bias, heads, segments, scores));
    Kept::new(output, scores.products).1
}

/// `inputs` are q, k and v, and with `buckets` the table of a bias.
fn tracked<const N: usize, C: CheckpointStrategy>(
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    buckets: Option<Buckets>,
    heads: Heads,
    segments: Arc<Segments>,
    scores: Scores,
) -> FloatTensor<Autodiff<Flex, C>> {
    let (mut kept, mut numbers, mut stand_ins) = (Vec::new(), Vec::new(), Vec::new());
    for (index, input) in inputs.into_iter().enumerate() {
        let (x, node) = input.into_parts();
        let (x, as_kept) = Kept::new(x, if index < 3 { scores.products } else { Products::F32 });
        kept.push(x);
        numbers.push(as_kept);
        stand_ins.push(stand_in::<C>(node));
    }
    let bias = buckets.and_then(|buckets| Some((numbers.drain(3..).next()?, buckets)));
    let [q, k, v] = numbers.try_into().expect("three inputs beside the table");
    let (output, log_sums) = forward(&Inputs::new([q, k, v], bias, heads, segments.clone(), scores));
    let (kept_output, output) = Kept::new(output, scores.products);
    // Whoever follows gets what is kept, too.
    let nodes: [_; N] = std::array::from_fn(|index| stand_ins[index].node());
    let prep = Attention.prepare::<C>(nodes).memory_bound().retro_forward(kept_output.clone());
    match prep.parents(&stand_ins).stateful() {
        OpsKind::Tracked(prep) => {
            prep.finish(Saved { kept, buckets, heads, segments, scores, output: kept_output, log_sums }, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

#[derive(Debug)]
struct Attention;

#[derive(Debug, Clone)]
struct Saved {
    /// q, k and v, and with `buckets` the table of a bias.
    kept: Vec<Kept>,
    buckets: Option<Buckets>,
    heads: Heads,
    segments: Arc<Segments>,
    scores: Scores,
    output: Kept,
    /// Logarithm of each row's softmax denominator, `[queries, query heads]`.
    log_sums: Vec<f32>,
}

impl<const N: usize> Backward<Flex, N> for Attention {
    type State = Saved;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        for (node, grad) in ops.parents.into_iter().zip(backward(&ops.state, &grad)) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, grad);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random, track, values};

    type Op = fn(Tensor<2>, Tensor<2>, Tensor<2>, Option<PositionBias>, Heads, Arc<Segments>, Scores) -> Tensor<2>;

    #[test]
    fn forward_and_gradients_equal_the_reference() {
        let cases = [
            (vec![0, 1], Heads { query: 1, key_value: 1, dim: 1 }),
            (vec![0, 5, 6, 20], Heads { query: 6, key_value: 2, dim: 8 }),
            // More than one tile of queries and of keys, cut unevenly.
            (vec![0, 3, 355], Heads { query: 2, key_value: 1, dim: 16 }),
            // More queries than the reference computes at a time.
            (vec![0, 2, 600], Heads { query: 2, key_value: 2, dim: 4 }),
        ];
        let plain = Scores::scaled(0.4);
        let kinds = [
            plain,
            Scores { soft_cap: Some(1.5), ..plain },
            Scores { window: Some(2), ..plain },
            Scores { window: Some(3), ..plain },
            // Whole tiles of keys lie before the window.
            Scores { window: Some(140), soft_cap: Some(2.0), ..plain },
            Scores { dropout: Some(Dropout { probability: 0.3, seed: 5 }), ..plain },
            Scores {
                window: Some(3),
                soft_cap: Some(2.0),
                dropout: Some(Dropout { probability: 0.2, seed: 6 }),
                ..plain
            },
            Scores { products: Products::Bf16, ..plain },
            Scores { products: Products::F16, ..plain },
            Scores { causal: false, ..plain },
            Scores {
                causal: false,
                soft_cap: Some(2.0),
                dropout: Some(Dropout { probability: 0.2, seed: 7 }),
                ..plain
            },
        ];
        let near = Buckets { count: 8, furthest: 20, both_sides: false };
        let to_both = Buckets { count: 32, furthest: 128, both_sides: true };
        let dropped = Some(Dropout { probability: 0.2, seed: 8 });
        let biased = [
            (plain, near),
            (Scores { window: Some(140), products: Products::Bf16, ..plain }, near),
            (Scores { causal: false, dropout: dropped, ..plain }, to_both),
        ];
        let kinds = kinds.into_iter().map(|kind| (kind, None));
        let kinds: Vec<_> = kinds.chain(biased.map(|(kind, buckets)| (kind, Some(buckets)))).collect();
        crate::simd::testing::at_every_level(|level| {
            let all = cases.iter().flat_map(|case| kinds.iter().map(move |kind| (case, *kind)));
            for ((starts, heads), (scores, buckets)) in all {
                let rows = *starts.last().unwrap();
                let segments = Arc::new(Segments::packed(starts));
                let q = random([rows, heads.query * heads.dim], 1);
                let k = random([rows, heads.key_value * heads.dim], 2);
                let v = random([rows, heads.key_value * heads.dim], 3);
                let upstream = random([rows, heads.query * heads.dim], 4);
                let run = |op: Op| {
                    let [q, k, v] = [&q, &k, &v].map(track);
                    let bias = buckets.map(|buckets| PositionBias {
                        table: track(&random([buckets.count, heads.query], 5)),
                        buckets,
                    });
                    let output = op(q.clone(), k.clone(), v.clone(), bias.clone(), *heads, segments.clone(), scores);
                    let grads = (output.clone() * upstream.clone()).sum().backward();
                    let leaves = [q, k, v].into_iter().chain(bias.map(|bias| bias.table));
                    let mut results = vec![output.inner()];
                    results.extend(leaves.map(|leaf| leaf.grad(&grads).unwrap()));
                    results
                };
                for (index, (ours, theirs)) in run(biased_attention).into_iter().zip(run(reference)).enumerate() {
                    let what = format!("{level:?} {starts:?} {heads:?} {scores:?} {buckets:?} result {index}");
                    // bfloat16 has 8 bits; the errors of a score's terms add up.
                    let tolerance = match scores.products {
                        Products::F32 => 3e-5,
                        Products::Bf16 => 3e-2,
                        Products::F16 => 4e-3,
                    };
                    assert_close(ours, theirs, tolerance, &what);
                }
            }
        });
    }

    #[test]
    fn queries_with_a_cache_see_what_they_saw_without() {
        let heads = Heads { query: 4, key_value: 2, dim: 6 };
        let (q, k, v) = (random([150, 24], 1), random([150, 12], 2), random([150, 12], 3));
        let buckets = Buckets { count: 8, furthest: 100, both_sides: false };
        let bias = PositionBias { table: random([8, 4], 4), buckets };
        for (window, bias) in [(None, None), (Some(7), None), (Some(149), None), (None, Some(bias))] {
            let scores = Scores { window, ..Scores::scaled(0.3) };
            let packed = Arc::new(Segments::packed(&[0, 150]));
            let whole = biased_attention(q.clone(), k.clone(), v.clone(), bias.clone(), heads, packed, scores);
            let last = Arc::new(Segments::cached([(0..3, 0..150)]));
            let run = |op: Op| {
                let q = q.clone().narrow(0, 147, 3);
                op(q, k.clone(), v.clone(), bias.clone(), heads, last.clone(), scores)
            };
            for cached in [run(biased_attention), run(reference)] {
                assert_close(cached, whole.clone().narrow(0, 147, 3), 1e-5, "cached");
            }
        }
    }

    #[test]
    fn a_sample_never_sees_its_neighbour() {
        let heads = Heads { query: 2, key_value: 1, dim: 4 };
        let segments = Arc::new(Segments::packed(&[0, 4, 9]));
        let (q, k, v) = (random([9, 8], 1), random([9, 4], 2), random([9, 4], 3));
        let run =
            |v: Tensor<2>| values(attention(q.clone(), k.clone(), v, heads, segments.clone(), Scores::scaled(0.5)));
        let before = run(v.clone());
        // Another first sample: the second one's outputs stay the same to the last bit.
        let other = Tensor::cat(vec![v.clone().narrow(0, 0, 4) * 3.0, v.narrow(0, 4, 5)], 0);
        let after = run(other);
        assert_ne!(before[..32], after[..32]);
        assert_eq!(before[32..], after[32..]);
    }
}
