//! The forward and the backward, one tile of scores at a time.

use std::ops::Range;
use std::sync::Arc;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{Heads, Saved, Scores, Segment, Segments, dropout_place};
use crate::Buckets;
use crate::buffer::{SharedMut, elements, shape2, tensor, uninit};
use crate::matmul::{View, Write, parts};
use crate::position_bias::ByDistance;
use crate::simd;
use crate::small::{ROWS, multiply};

/// Queries and keys of one tile. Its scores (64 × 128 floats, 32 KiB) stay in the nearest caches.
const QUERY_TILE: usize = 64;
const KEY_TILE: usize = 128;
/// Scores are made of whole vectors: from and up to multiples of this.
const LANES: usize = 16;
/// Up to so many queries, as in generation, keys are not worth transposing.
const FEW_QUERIES: usize = 4;

#[derive(Debug, Clone)]
pub(super) struct Inputs {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    bias: Option<ByDistance>,
    heads: Heads,
    segments: Arc<Segments>,
    scores: Scores,
}

/// One piece of parallel work: a sequence and a key/value head, with all query heads of its group.
struct Task<'a> {
    segment: &'a Segment,
    key_value_head: usize,
    causal: bool,
    window: Option<usize>,
}

/// A block of scores: some queries of one head against some keys, both counted within the segment. In memory it has
/// [`KEY_TILE`] columns.
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
}

/// The keys or the values of one head, transposed: `[tiles of keys, dim, KEY_TILE]`.
struct Transposed {
    numbers: Vec<f32>,
    dim: usize,
}

impl Transposed {
    fn new(rows: View<'_>) -> Self {
        let [count, dim] = rows.dims();
        let (lines, stride) = rows.lines();
        let mut numbers = vec![0.0; count.div_ceil(KEY_TILE) * dim * KEY_TILE];
        for (panel, keys) in numbers.chunks_mut((dim * KEY_TILE).max(1)).zip(parts(count, KEY_TILE)) {
            for (column, key) in keys.enumerate() {
                let row = &lines[key * stride..][..dim];
                panel.iter_mut().skip(column).step_by(KEY_TILE).zip(row).for_each(|(number, &from)| *number = from);
            }
        }
        Self { numbers, dim }
    }

    /// `[dim, KEY_TILE]` of the tile that begins with this key; zeros follow the last one.
    fn panel(&self, first_key: usize) -> View<'_> {
        let len = self.dim * KEY_TILE;
        View::new(&self.numbers[first_key / KEY_TILE * len..][..len], [self.dim, KEY_TILE])
    }
}

impl Inputs {
    pub(super) fn new(
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

    /// Keys or values of a task, transposed.
    fn transposed(&self, x: &FlexTensor, task: &Task<'_>) -> Transposed {
        Transposed::new(self.head_view(x, task.segment.keys.clone(), task.key_value_head))
    }

    /// Drops some weights of a tile, or the gradients of these; the same in the forward and in the backward.
    fn drop_some(&self, task: &Task<'_>, head: usize, tile: &Tile, weights: &mut [f32]) {
        let Some(dropout) = self.scores.dropout else { return };
        let key_rows = shape2(&self.k)[0];
        for (row, weights) in weights.chunks_mut(KEY_TILE).take(tile.queries.len()).enumerate() {
            let query = task.segment.queries.start + tile.queries.start + row;
            let first = dropout_place(query, head, task.segment.keys.start + tile.keys.start, self.heads, key_rows);
            let seen = task.visible_in(tile, row);
            weights[seen.clone()].iter_mut().zip(seen).for_each(|(weight, key)| *weight *= dropout.factor(first + key));
        }
    }

    /// What the queries of a tile make of its keys, `scale · q·k`, at least where they see them.
    fn dots(&self, task: &Task<'_>, q: View<'_>, k: &Transposed, tile: &Tile, scale: f32, output: &mut [f32]) {
        let (output, panel) = (SharedMut::new(output), k.panel(tile.keys.start));
        for rows in parts(tile.queries.len(), ROWS) {
            let seen = task.seen_by(tile, &rows);
            if seen.is_empty() {
                continue;
            }
            let cols = seen.start / LANES * LANES..seen.end.next_multiple_of(LANES).min(KEY_TILE);
            let (offset, q) = (rows.start * KEY_TILE + cols.start, q.part(rows, 0..k.dim));
            // SAFETY: `output` is borrowed mutably and holds the tile.
            unsafe { multiply(output, offset, KEY_TILE, Write::Replace, scale, q, panel.part(0..k.dim, cols)) };
        }
    }

    /// The scores of a tile where they are seen, after the cap and with the bias.
    fn score(&self, task: &Task<'_>, head: usize, k: Option<&Transposed>, tile: &Tile, scores: &mut [f32]) {
        let q = self.head_view(&self.q, shift(&tile.queries, task.segment.queries.start), head);
        if let Some(k) = k {
            self.dots(task, q, k, tile, self.scores.scale, scores);
        }
        for (row, scores) in scores.chunks_mut(KEY_TILE).take(tile.queries.len()).enumerate() {
            let seen = task.visible_in(tile, row);
            let scores = &mut scores[seen.clone()];
            if k.is_none() {
                let keys = shift(&shift(&seen, tile.keys.start), task.segment.keys.start);
                let query = q.part(row..row + 1, 0..self.heads.dim);
                let query = &query.elements()[..self.heads.dim];
                for (score, key) in scores.iter_mut().zip(keys) {
                    let key = self.head_view(&self.k, key..key + 1, task.key_value_head);
                    *score = self.scores.scale * simd::dot(query, &key.elements()[..self.heads.dim]);
                }
            }
            if let Some(cap) = self.scores.soft_cap {
                simd::soft_cap(scores, cap);
            }
            if let Some(bias) = &self.bias {
                let start = task.start_in(bias, tile, row) + seen.start;
                simd::add(scores, &bias.of_head(head)[start..][..seen.len()]);
            }
        }
    }
}

impl Task<'_> {
    fn query_heads(&self, heads: Heads) -> Range<usize> {
        self.key_value_head * heads.group()..(self.key_value_head + 1) * heads.group()
    }

    /// Keys that come before the first query.
    fn before(&self) -> usize {
        self.segment.keys.len() - self.segment.queries.len()
    }

    /// Where a tile's row begins among the numbers of all distances.
    fn start_in(&self, bias: &ByDistance, tile: &Tile, row: usize) -> usize {
        bias.start(self.before() + tile.queries.start + row, tile.keys.start)
    }

    /// The keys that the query at `index` of the segment sees.
    fn visible(&self, index: usize) -> Range<usize> {
        if !self.causal {
            return 0..self.segment.keys.len();
        }
        let end = self.before() + index + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The tiles of queries, each with the tiles of keys that at least one of them sees.
    fn tiles(&self) -> impl Iterator<Item = (Range<usize>, impl Iterator<Item = Tile>)> {
        parts(self.segment.queries.len(), QUERY_TILE).map(|queries| {
            let (first, end) = (self.visible(queries.start).start / KEY_TILE, self.visible(queries.end - 1).end);
            let of = queries.clone();
            let keys = parts(end, KEY_TILE).skip(first);
            (queries, keys.map(move |keys| Tile { queries: of.clone(), keys }))
        })
    }

    /// The keys of the tile, counted within it, that the tile's row `row` sees.
    fn visible_in(&self, tile: &Tile, row: usize) -> Range<usize> {
        let Range { start, end } = self.visible(tile.queries.start + row);
        within(&tile.keys, start)..within(&tile.keys, end)
    }

    /// The keys of the tile that at least one of some neighbouring rows sees.
    fn seen_by(&self, tile: &Tile, rows: &Range<usize>) -> Range<usize> {
        self.visible_in(tile, rows.start).start..self.visible_in(tile, rows.end - 1).end
    }

    /// The rows of the tile that see at least one of some neighbouring keys, all counted within it.
    fn that_see(&self, tile: &Tile, keys: &Range<usize>) -> Range<usize> {
        if !self.causal {
            return 0..tile.queries.len();
        }
        let keys = shift(keys, tile.keys.start);
        // Query `i` is key `before + i`, the last that it sees.
        let first = keys.start.saturating_sub(self.before());
        let end = self.window.map_or(usize::MAX, |window| (keys.end - 1 + window).saturating_sub(self.before()));
        within(&tile.queries, first)..within(&tile.queries, end)
    }
}

/// `index` as counted from the start of `range`, or its nearest end.
fn within(range: &Range<usize>, index: usize) -> usize {
    index.saturating_sub(range.start).min(range.len())
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

/// The output, and the logarithm of each row's softmax denominator.
pub(super) fn forward(inputs: &Inputs) -> (FlexTensor, Vec<f32>) {
    let heads = inputs.heads;
    let [rows, width] = shape2(&inputs.q);
    let mut output = vec![0.0; rows * width];
    let mut log_sums = vec![0.0; rows * heads.query];
    let (output_ptr, log_sums_ptr) = (SharedMut::new(&mut output), SharedMut::new(&mut log_sums));
    inputs.tasks().for_each(|task| {
        let mut scores = uninit(QUERY_TILE * KEY_TILE);
        let few = task.segment.queries.len() <= FEW_QUERIES;
        let k = (!few).then(|| inputs.transposed(&inputs.k, &task));
        for head in task.query_heads(heads) {
            for (queries, key_tiles) in task.tiles() {
                let first_row = task.segment.queries.start + queries.start;
                let mut largest = [f32::NEG_INFINITY; QUERY_TILE];
                let mut sums = [0.0f32; QUERY_TILE];
                let place = |row: usize| (first_row + row) * width + head * heads.dim;
                // SAFETY: this task alone owns these rows of this head.
                let output_row = |row: usize| unsafe { output_ptr.slice(place(row), heads.dim) };
                for tile in key_tiles {
                    inputs.score(&task, head, k.as_ref(), &tile, &mut scores);
                    for (row, scores) in scores.chunks_mut(KEY_TILE).take(queries.len()).enumerate() {
                        let seen = clear_unseen(scores, task.visible_in(&tile, row));
                        if seen.is_empty() {
                            continue;
                        }
                        let new_largest = largest[row].max(simd::max(seen));
                        let correction = (largest[row] - new_largest).exp();
                        sums[row] = sums[row] * correction + simd::exp_sum(seen, new_largest);
                        largest[row] = new_largest;
                        if correction != 1.0 {
                            simd::scale(output_row(row), correction);
                        }
                    }
                    inputs.drop_some(&task, head, &tile, &mut scores);
                    let weights = View::new(&scores, [QUERY_TILE, KEY_TILE]);
                    let v = inputs.head_view(&inputs.v, task.segment.keys.clone(), task.key_value_head);
                    for rows in parts(queries.len(), ROWS) {
                        let seen = task.seen_by(&tile, &rows);
                        let v = v.part(shift(&seen, tile.keys.start), 0..heads.dim);
                        let (offset, weights) = (place(rows.start), weights.part(rows, seen));
                        // SAFETY: as for `output_row`.
                        unsafe { multiply(output_ptr, offset, width, Write::Accumulate, 1.0, weights, v) };
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
pub(super) fn backward(saved: &Saved, grad: &FlexTensor) -> Vec<FlexTensor> {
    let Saved { kept, buckets, heads, segments, scores, output, log_sums } = saved;
    let (output, heads, scale) = (output.tensor(), *heads, scores.scale);
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
        let mut dropped: Option<Vec<f32>> = scores.dropout.map(|_| uninit(QUERY_TILE * KEY_TILE));
        let [k_panels, v_panels] = [&inputs.k, &inputs.v].map(|x| inputs.transposed(x, &task));
        let k = inputs.head_view(&inputs.k, task.segment.keys.clone(), task.key_value_head);
        for head in task.query_heads(heads) {
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
                let q = inputs.head_view(&inputs.q, rows.clone(), head);
                for tile in key_tiles {
                    inputs.score(&task, head, Some(&k_panels), &tile, &mut weights);
                    inputs.dots(&task, output_grad, &v_panels, &tile, 1.0, &mut score_grads);
                    inputs.drop_some(&task, head, &tile, &mut score_grads);
                    let both = score_grads.chunks_mut(KEY_TILE).zip(weights.chunks_mut(KEY_TILE));
                    for (row, (score_grads, weights)) in both.take(queries.len()).enumerate() {
                        let seen = task.visible_in(&tile, row);
                        let (score_grads, weights) =
                            (clear_unseen(score_grads, seen.clone()), clear_unseen(weights, seen.clone()));
                        let log_sum = log_sums[(rows.start + row) * heads.query + head];
                        match scores.soft_cap {
                            None => score_grad_row(weights, log_sum, row_dots[row], score_grads),
                            Some(cap) => capped_score_grad_row(weights, log_sum, row_dots[row], cap, score_grads),
                        }
                        if let Some(bias) = &inputs.bias {
                            let start = task.start_in(bias, &tile, row) + seen.start;
                            simd::add(&mut of_head[start..][..seen.len()], score_grads);
                        }
                    }
                    if let Some(dropped) = &mut dropped {
                        dropped.copy_from_slice(&weights);
                        inputs.drop_some(&task, head, &tile, dropped);
                    }
                    let shape = [QUERY_TILE, KEY_TILE];
                    let weights = View::new(dropped.as_deref().unwrap_or(&weights), shape);
                    let score_grads = View::new(&score_grads, shape);
                    for rows_of_tile in parts(queries.len(), ROWS) {
                        let seen = task.seen_by(&tile, &rows_of_tile);
                        let k = k.part(shift(&seen, tile.keys.start), 0..heads.dim);
                        let offset = (rows.start + rows_of_tile.start) * width + head * heads.dim;
                        let score_grads = score_grads.part(rows_of_tile, seen);
                        // SAFETY: only this task touches this head of these rows of q.
                        unsafe { multiply(q_ptr, offset, width, Write::Accumulate, scale, score_grads, k) };
                    }
                    for keys in parts(tile.keys.len(), ROWS) {
                        let seeing = task.that_see(&tile, &keys);
                        let key = task.segment.keys.start + tile.keys.start + keys.start;
                        let offset = key * key_width + task.key_value_head * heads.dim;
                        let of_keys = |tile: View<'_>, rows: View<'_>, write_to: SharedMut, scale: f32| {
                            let tile = tile.part(seeing.clone(), keys.clone()).t();
                            let rows = rows.part(seeing.clone(), 0..heads.dim);
                            // SAFETY: only this task touches this key/value head of these rows of k and v.
                            unsafe { multiply(write_to, offset, key_width, Write::Accumulate, scale, tile, rows) };
                        };
                        of_keys(weights, output_grad, v_ptr, 1.0);
                        of_keys(score_grads, q, k_ptr, scale);
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
    /// Scores become `P = e^(S − log Σ)`, and `dP` becomes `dS = P ⊙ (dP − D)`.
    fn score_grad_row(scores: &mut [f32], log_sum: f32, dot: f32, grads: &mut [f32]) {
        for (grad, score) in grads.iter_mut().zip(scores) {
            *score = simd::exp::<FMA>(*score - log_sum);
            *grad = *score * (*grad - dot);
        }
    }
}

simd::simd_fn! {
    /// The same of capped scores, with the cap's slope.
    fn capped_score_grad_row(scores: &mut [f32], log_sum: f32, dot: f32, cap: f32, grads: &mut [f32]) {
        let inverse = 1.0 / cap;
        for (grad, score) in grads.iter_mut().zip(scores) {
            let slope = simd::cap_slope::<FMA>(*score, inverse);
            *score = simd::exp::<FMA>(*score - log_sum);
            *grad = *score * (*grad - dot) * slope;
        }
    }
}
