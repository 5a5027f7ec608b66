//! Attention by burn's own ops.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Bool, Tensor, TensorData};

use super::{Heads, Scores, Segment, Segments, dropout_place};
use crate::PositionBias;
use crate::soft_cap::soft_capped;

/// Queries that the reference computes at a time.
const QUERY_ROWS: usize = 512;

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
