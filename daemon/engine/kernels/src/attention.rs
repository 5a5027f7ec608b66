//! Grouped-query attention over packed sequences, causal or to both sides, tiled with an online softmax (FlashAttention-2, Dao 2023,
//! arXiv 2307.08691): no token sees another sample, and nothing of size tokens × tokens is kept.
//!
//! Heads lie side by side, `[tokens, heads · head_dim]`, so that neither projection needs a transposed copy.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Bool, Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{SharedMut, contiguous, elements, shape2, tensor, uninit};
use crate::device::on_cpu;
use crate::kept::{Kept, stand_in};
use crate::matmul::{Threads, View, Write, matmul_into};
use crate::position_bias::ByDistance;
use crate::simd;
use crate::soft_cap::soft_capped;
use crate::{Buckets, Dropout, PositionBias, Products};

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

/// The same by burn's own ops. Scores exist for [`QUERY_ROWS`] queries at a time and the keys that these may see.
pub fn reference(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    bias: Option<PositionBias>,
    heads: Heads,
    segments: Arc<Segments>,
    Scores { scale, soft_cap, causal, window, dropout, .. }: Scores,
) -> Tensor<2> {
    let (device, group, k_rows) = (q.device(), heads.group(), k.dims()[0]);
    // `[key/value heads, rows, dim]`.
    let split = |x: &Tensor<2>, rows: Range<usize>| {
        let len = rows.len();
        x.clone().narrow(0, rows.start, len).reshape([len, heads.key_value, heads.dim]).swap_dims(0, 1)
    };
    let mut outputs = Vec::new();
    for Segment { queries, keys } in &segments.0 {
        let hidden = keys.len().saturating_sub(queries.len());
        for first in (0..queries.len()).step_by(QUERY_ROWS) {
            let rows = QUERY_ROWS.min(queries.len() - first);
            let seen = if causal { first + rows + hidden } else { keys.len() };
            // The queries of a group share their keys, so they are rows of one product.
            let q = q.clone().narrow(0, queries.start + first, rows);
            let q = q.reshape([rows, heads.key_value, group, heads.dim]).permute([1, 2, 0, 3]);
            let q = q.reshape([heads.key_value, group * rows, heads.dim]);
            let [k, v] = [&k, &v].map(|x| split(x, keys.start..keys.start + seen));
            let scores = soft_capped(q.matmul(k.swap_dims(1, 2)) * scale, soft_cap);
            let scores = scores.reshape([heads.key_value, group, rows, seen]);
            let scores = match &bias {
                None => scores,
                Some(bias) => {
                    scores + bias.dense(first + hidden, rows, seen).reshape([heads.key_value, group, rows, seen])
                }
            };
            let diagonal = (first + hidden) as i64;
            let future = Tensor::<2, Bool>::tril_mask([rows, seen], diagonal, &device);
            let unseen = match window {
                None => future,
                Some(window) => future.bool_or(Tensor::triu_mask([rows, seen], diagonal - window as i64 + 1, &device)),
            };
            let unseen = unseen.unsqueeze::<4>().expand([heads.key_value, group, rows, seen]);
            let scores = if causal { scores.mask_fill(unseen, -1e30) } else { scores };
            let weights = burn::tensor::activation::softmax(scores, 3);
            let weights = match dropout {
                None => weights,
                Some(dropout) => {
                    let place = |head, row, key| {
                        dropout_place(queries.start + first + row, head, keys.start + key, heads, k_rows)
                    };
                    let of_row = |head, row| (0..seen).map(move |key| dropout.factor(place(head, row, key)));
                    let of_head = |head| (0..rows).flat_map(move |row| of_row(head, row));
                    let factors: Vec<f32> = (0..heads.query).flat_map(of_head).collect();
                    weights * Tensor::from_data(TensorData::new(factors, [heads.key_value, group, rows, seen]), &device)
                }
            };
            let weights = weights.reshape([heads.key_value, group * rows, seen]);
            let output = weights.matmul(v).reshape([heads.key_value, group, rows, heads.dim]);
            outputs.push(output.permute([2, 0, 1, 3]).reshape([rows, heads.query * heads.dim]));
        }
    }
    Tensor::cat(outputs, 0)
}

/// Which of all random numbers decides over a key for a query of a head.
fn dropout_place(query: usize, head: usize, key: usize, heads: Heads, key_rows: usize) -> usize {
    (query * heads.query + head) * key_rows + key
}

/// Queries that the reference computes at a time.
const QUERY_ROWS: usize = 512;

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
struct Inputs {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    bias: Option<ByDistance>,
    heads: Heads,
    segments: Arc<Segments>,
    scores: Scores,
}

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

/// Queries and keys of one tile. Its scores (64 × 128 floats, 32 KiB) stay in the first-level cache.
const QUERY_TILE: usize = 64;
const KEY_TILE: usize = 128;

/// One piece of parallel work: a sequence and a key/value head, with all query heads of its group.
struct Task<'a> {
    segment: &'a Segment,
    key_value_head: usize,
    causal: bool,
    window: Option<usize>,
}

/// A block of scores: some queries of one head against some keys, both counted within the segment.
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Inputs {
    fn new(
        [q, k, v]: [FlexTensor; 3],
        bias: Option<(FlexTensor, Buckets)>,
        heads: Heads,
        segments: Arc<Segments>,
        scores: Scores,
    ) -> Self {
        let longest = segments.0.iter().map(|segment| segment.keys.len()).max().unwrap_or(1).max(1);
        let bias = bias.map(|(table, buckets)| ByDistance::new(table, buckets, longest));
        Self { q, k, v, bias, heads, segments, scores }
    }

    fn tasks(&self) -> impl ParallelIterator<Item = Task<'_>> {
        let (heads, Scores { causal, window, .. }) = (self.heads.key_value, self.scores);
        self.segments.0.par_iter().flat_map(move |segment| {
            (0..heads).into_par_iter().map(move |key_value_head| Task { segment, key_value_head, causal, window })
        })
    }

    /// `rows` of `x` restricted to one head.
    fn head_view<'a>(&self, x: &'a FlexTensor, rows: Range<usize>, head: usize) -> View<'a> {
        let width = shape2(x)[1];
        let offset = rows.start * width + head * self.heads.dim;
        View::strided(&elements(x)[offset..], [rows.len(), self.heads.dim], width)
    }

    /// Drops some weights of a tile, or the gradients of these; the same in the forward and in the backward.
    fn drop_some(&self, task: &Task<'_>, head: usize, tile: &Tile, weights: &mut [f32]) {
        let Some(dropout) = self.scores.dropout else { return };
        let (key_rows, cols) = (shape2(&self.k)[0], tile.keys.len());
        for (row, weights) in weights.chunks_mut(cols).take(tile.queries.len()).enumerate() {
            let query = task.segment.queries.start + tile.queries.start + row;
            let first = dropout_place(query, head, task.segment.keys.start + tile.keys.start, self.heads, key_rows);
            weights.iter_mut().enumerate().for_each(|(key, weight)| *weight *= dropout.factor(first + key));
        }
    }

    /// The scores of a tile into `scores`, row-major.
    fn score(&self, task: &Task<'_>, head: usize, tile: &Tile, scores: &mut [f32]) {
        let q = self.head_view(&self.q, shift(&tile.queries, task.segment.queries.start), head);
        let k = self.head_view(&self.k, shift(&tile.keys, task.segment.keys.start), task.key_value_head);
        // SAFETY: `scores` is borrowed mutably and holds queries × keys elements.
        unsafe {
            let (scores, scale) = (SharedMut::new(scores), self.scores.scale);
            matmul_into(scores, 0, tile.keys.len(), Write::Replace, scale, q, k.t(), Threads::One);
        }
        if let Some(cap) = self.scores.soft_cap {
            simd::soft_cap(&mut scores[..tile.queries.len() * tile.keys.len()], cap);
        }
        if let Some(bias) = &self.bias {
            let bias_of_head = bias.of_head(head);
            for (row, scores) in scores.chunks_mut(tile.keys.len()).take(tile.queries.len()).enumerate() {
                simd::add(scores, &bias_of_head[task.start_in(bias, tile, row)..][..tile.keys.len()]);
            }
        }
    }
}

impl Task<'_> {
    /// Where a tile's row begins among the numbers of all distances.
    fn start_in(&self, bias: &ByDistance, tile: &Tile, row: usize) -> usize {
        let before = self.segment.keys.len() - self.segment.queries.len();
        bias.start(before + tile.queries.start + row, tile.keys.start)
    }

    /// The keys that the query at `index` of the segment sees.
    fn visible(&self, index: usize) -> Range<usize> {
        if !self.causal {
            return 0..self.segment.keys.len();
        }
        let end = self.segment.keys.len() - self.segment.queries.len() + index + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The tiles of queries, each with the tiles of keys that at least one of them sees.
    fn tiles(&self) -> impl Iterator<Item = (Range<usize>, impl Iterator<Item = Tile>)> {
        tiles(0..self.segment.queries.len(), QUERY_TILE).map(|queries| {
            let keys = tiles(self.visible(queries.start).start..self.visible(queries.end - 1).end, KEY_TILE);
            let of = queries.clone();
            (queries, keys.map(move |keys| Tile { queries: of.clone(), keys }))
        })
    }

    /// The keys of the tile, counted within it, that the tile's row `row` sees.
    fn visible_in(&self, tile: &Tile, row: usize) -> Range<usize> {
        let Range { start, end } = self.visible(tile.queries.start + row);
        let within = |key: usize| key.saturating_sub(tile.keys.start).min(tile.keys.len());
        within(start)..within(end)
    }
}

fn tiles(all: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = all.end;
    all.step_by(size).map(move |start| start..(start + size).min(end))
}

/// Sets to 0 what a row of a tile does not see, and returns what it sees.
fn clear_unseen(row: &mut [f32], visible: Range<usize>) -> &mut [f32] {
    row[..visible.start].fill(0.0);
    row[visible.end..].fill(0.0);
    &mut row[visible]
}

fn shift(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}

fn forward(inputs: &Inputs) -> (FlexTensor, Vec<f32>) {
    let heads = inputs.heads;
    let [rows, width] = shape2(&inputs.q);
    let mut output = vec![0.0; rows * width];
    let mut log_sums = vec![0.0; rows * heads.query];
    let (output_ptr, log_sums_ptr) = (SharedMut::new(&mut output), SharedMut::new(&mut log_sums));
    inputs.tasks().for_each(|task| {
        let mut scores = uninit(QUERY_TILE * KEY_TILE);
        for head in task.key_value_head * heads.group()..(task.key_value_head + 1) * heads.group() {
            for (queries, key_tiles) in task.tiles() {
                let first_row = task.segment.queries.start + queries.start;
                let mut largest = [f32::NEG_INFINITY; QUERY_TILE];
                let mut sums = [0.0f32; QUERY_TILE];
                // SAFETY: this task alone owns these rows of this head.
                let output_row =
                    |row: usize| unsafe { output_ptr.slice((first_row + row) * width + head * heads.dim, heads.dim) };
                for tile in key_tiles {
                    let cols = tile.keys.len();
                    inputs.score(&task, head, &tile, &mut scores);
                    for (row, scores) in scores.chunks_mut(cols).take(queries.len()).enumerate() {
                        let seen = clear_unseen(scores, task.visible_in(&tile, row));
                        let new_largest = largest[row].max(simd::max(seen));
                        if seen.is_empty() {
                            continue;
                        }
                        let correction = (largest[row] - new_largest).exp();
                        sums[row] = sums[row] * correction + simd::exp_sum(seen, new_largest);
                        largest[row] = new_largest;
                        if correction != 1.0 {
                            simd::scale(output_row(row), correction);
                        }
                    }
                    inputs.drop_some(&task, head, &tile, &mut scores);
                    let weights = View::new(&scores, [queries.len(), cols]);
                    let keys = shift(&tile.keys, task.segment.keys.start);
                    let v = inputs.head_view(&inputs.v, keys, task.key_value_head);
                    let offset = first_row * width + head * heads.dim;
                    // SAFETY: as for `output_row`.
                    unsafe {
                        matmul_into(output_ptr, offset, width, Write::Accumulate, 1.0, weights, v, Threads::One);
                    }
                }
                for row in 0..queries.len() {
                    simd::scale(output_row(row), 1.0 / sums[row]);
                    // SAFETY: this task alone owns these rows of this head.
                    unsafe {
                        *log_sums_ptr.at((first_row + row) * heads.query + head) = largest[row] + sums[row].ln();
                    }
                }
            }
        }
    });
    (tensor(output, [rows, width]), log_sums)
}

/// The gradients of q, k and v. With `P` the softmax and `D` each row's `Σ dO·O`:
/// `dV = Pᵀ·dO`, `dS = P ⊙ (dO·Vᵀ − D)`, `dQ = scale·dS·K`, `dK = scale·dSᵀ·Q`; a cap multiplies `dS` by its slope, and
/// dropout the `P` of `dV` and `dO·Vᵀ` by its factors. A bias has the sum of `dS` over its distances, and comes last.
fn backward(saved: &Saved, grad: &FlexTensor) -> Vec<FlexTensor> {
    let Saved { kept, buckets, heads, segments, scores, output, log_sums } = saved;
    let (output, heads) = (output.tensor(), *heads);
    let bias = buckets.map(|buckets| (kept[3].tensor(), buckets));
    let inputs = Inputs::new([0, 1, 2].map(|index| kept[index].tensor()), bias, heads, segments.clone(), *scores);
    let ([query_rows, width], [key_rows, key_width]) = (shape2(&inputs.q), shape2(&inputs.k));
    let mut q_grad = vec![0.0; query_rows * width];
    let mut k_grad = vec![0.0; key_rows * key_width];
    let mut v_grad = vec![0.0; key_rows * key_width];
    let [q_ptr, k_ptr, v_ptr] = [&mut q_grad, &mut k_grad, &mut v_grad].map(|grad| SharedMut::new(grad));
    // What each task makes of the distances of its heads.
    let of_distances = inputs.tasks().map(|task| {
        let mut of_distances = Vec::new();
        let mut weights = uninit(QUERY_TILE * KEY_TILE);
        let mut score_grads = uninit(QUERY_TILE * KEY_TILE);
        let mut slopes = if inputs.scores.soft_cap.is_some() { uninit(QUERY_TILE * KEY_TILE) } else { Vec::new() };
        for head in task.key_value_head * heads.group()..(task.key_value_head + 1) * heads.group() {
            let mut of_head = inputs.bias.as_ref().map_or(Vec::new(), ByDistance::zeros);
            for (queries, key_tiles) in task.tiles() {
                let rows = shift(&queries, task.segment.queries.start);
                let mut row_dots = [0.0f32; QUERY_TILE];
                for (row, dot) in rows.clone().zip(&mut row_dots) {
                    let start = row * width + head * heads.dim;
                    let range = start..start + heads.dim;
                    *dot = simd::dot(&elements(&output)[range.clone()], &elements(grad)[range]);
                }
                let output_grad = inputs.head_view(grad, rows.clone(), head);
                for tile in key_tiles {
                    let (cols, shape) = (tile.keys.len(), [queries.len(), tile.keys.len()]);
                    let keys = shift(&tile.keys, task.segment.keys.start);
                    let key_offset = keys.start * key_width + task.key_value_head * heads.dim;
                    let v = inputs.head_view(&inputs.v, keys.clone(), task.key_value_head);
                    let k = inputs.head_view(&inputs.k, keys, task.key_value_head);
                    let q = inputs.head_view(&inputs.q, rows.clone(), head);

                    inputs.score(&task, head, &tile, &mut weights);
                    if let Some(cap) = inputs.scores.soft_cap {
                        simd::cap_slopes(&weights[..queries.len() * cols], cap, &mut slopes);
                    }
                    for (row, weights) in weights.chunks_mut(cols).take(queries.len()).enumerate() {
                        let seen = clear_unseen(weights, task.visible_in(&tile, row));
                        simd::exp_sum(seen, log_sums[(rows.start + row) * heads.query + head]);
                    }
                    let dropped = inputs.scores.dropout.map(|_| {
                        let mut dropped = weights[..queries.len() * cols].to_vec();
                        inputs.drop_some(&task, head, &tile, &mut dropped);
                        dropped
                    });
                    let scores_ptr = SharedMut::new(&mut score_grads);
                    // SAFETY: scratch of this task; and only this task touches this head of these rows of q, and this
                    // key/value head of these rows of k and v.
                    unsafe {
                        let p = View::new(dropped.as_deref().unwrap_or(&weights), shape);
                        matmul_into(
                            v_ptr,
                            key_offset,
                            key_width,
                            Write::Accumulate,
                            1.0,
                            p.t(),
                            output_grad,
                            Threads::One,
                        );
                        matmul_into(scores_ptr, 0, cols, Write::Replace, 1.0, output_grad, v.t(), Threads::One);
                    }
                    inputs.drop_some(&task, head, &tile, &mut score_grads);
                    let rows_of_both = score_grads.chunks_mut(cols).zip(weights.chunks(cols));
                    for ((score_grads, weights), dot) in rows_of_both.take(queries.len()).zip(row_dots) {
                        score_grad_row(weights, dot, score_grads);
                    }
                    if inputs.scores.soft_cap.is_some() {
                        let score_grads = &mut score_grads[..queries.len() * cols];
                        score_grads.iter_mut().zip(&slopes).for_each(|(grad, slope)| *grad *= slope);
                    }
                    if let Some(bias) = &inputs.bias {
                        for (row, score_grads) in score_grads.chunks(cols).take(queries.len()).enumerate() {
                            simd::add(&mut of_head[task.start_in(bias, &tile, row)..][..cols], score_grads);
                        }
                    }
                    let score_grads = View::new(&score_grads, shape);
                    let q_offset = rows.start * width + head * heads.dim;
                    // SAFETY: as above.
                    unsafe {
                        matmul_into(
                            q_ptr,
                            q_offset,
                            width,
                            Write::Accumulate,
                            inputs.scores.scale,
                            score_grads,
                            k,
                            Threads::One,
                        );
                        let transposed = score_grads.t();
                        matmul_into(
                            k_ptr,
                            key_offset,
                            key_width,
                            Write::Accumulate,
                            inputs.scores.scale,
                            transposed,
                            q,
                            Threads::One,
                        );
                    }
                }
            }
            of_distances.push((head, of_head));
        }
        of_distances
    });
    let of_distances: Vec<Vec<(usize, Vec<f32>)>> = of_distances.collect();
    let keys = [key_rows, key_width];
    let mut gradients = vec![tensor(q_grad, [query_rows, width]), tensor(k_grad, keys), tensor(v_grad, keys)];
    if let Some(bias) = &inputs.bias {
        let shape = shape2(&kept[3].tensor());
        let mut table = vec![0.0; shape[0] * shape[1]];
        // One after the other, so that the sum is the same every time.
        of_distances.iter().flatten().for_each(|(head, of_head)| bias.gather(*head, of_head, &mut table));
        gradients.push(tensor(table, shape));
    }
    gradients
}

simd::simd_fn! {
    /// `dP ← P ⊙ (dP − D)`.
    fn score_grad_row(weights: &[f32], dot: f32, score_grads: &mut [f32]) {
        let _ = FMA;
        for (grad, &weight) in score_grads.iter_mut().zip(weights) {
            *grad = weight * (*grad - dot);
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
