//! Rotary position embedding on heads side by side: `[tokens, heads · head_dim]` (Su et al. 2021, arXiv 2104.09864).
//!
//! The halves of a head are rotated against each other, as in Hugging Face's `rotate_half`: element `i` pairs with
//! `i + head_dim / 2`.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::buffer::{contiguous, elements, shape2, tensor, uninit};
use crate::device::on_cpu;
use crate::simd::{mul_add, simd_fn};

/// Cosines and sines of every token of a batch, `[tokens, head_dim / 2]` each.
#[derive(Debug)]
pub struct RotaryTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RotaryTable {
    /// `positions` count from 0 within each sample; `inverse_frequencies` holds `head_dim / 2` values.
    pub fn new(positions: &[u32], inverse_frequencies: &[f32]) -> Self {
        let half = inverse_frequencies.len();
        let mut cos = Vec::with_capacity(positions.len() * half);
        let mut sin = Vec::with_capacity(positions.len() * half);
        for &position in positions {
            for &frequency in inverse_frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        Self { cos, sin, half }
    }

    /// The tables of one run of tokens after the other.
    pub fn concat(tables: impl IntoIterator<Item = Self>) -> Self {
        let append = |mut all: Self, next: Self| {
            assert_eq!(all.half, next.half, "heads of one width");
            all.cos.extend(next.cos);
            all.sin.extend(next.sin);
            all
        };
        tables.into_iter().reduce(append).unwrap_or(Self { cos: Vec::new(), sin: Vec::new(), half: 0 })
    }

    /// Multiplies cosines and sines, and by that what they rotate.
    pub fn scaled(mut self, amplitude: f32) -> Self {
        if amplitude != 1.0 {
            self.cos.iter_mut().chain(&mut self.sin).for_each(|value| *value *= amplitude);
        }
        self
    }

    fn row(&self, token: usize) -> (&[f32], &[f32]) {
        let range = token * self.half..(token + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Rotates every head of `x` `[tokens, heads · head_dim]` by its token's position.
pub fn rotary(x: Tensor<2>, table: Arc<RotaryTable>) -> Tensor<2> {
    assert_eq!(x.dims()[0] * table.half, table.cos.len(), "one table row a token");
    assert_eq!(x.dims()[1] % (2 * table.half), 0, "whole heads");
    if !on_cpu(&x) {
        return reference(x, table);
    }
    Tensor::from_dispatch(<Dispatch as RotaryOp>::rotary(x.into_dispatch(), table))
}

/// The same by burn's own ops.
pub fn reference(x: Tensor<2>, table: Arc<RotaryTable>) -> Tensor<2> {
    let [tokens, features] = x.dims();
    let (half, device) = (table.half, x.device());
    let angle = |values: &[f32]| Tensor::<3>::from_data(TensorData::new(values.to_vec(), [tokens, 1, half]), &device);
    let (cos, sin) = (angle(&table.cos), angle(&table.sin));
    let heads: Tensor<3> = x.reshape([tokens, features / (2 * half), 2 * half]);
    let (first, second) = (heads.clone().narrow(2, 0, half), heads.narrow(2, half, half));
    let rotated =
        Tensor::cat(vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin], 2);
    rotated.reshape([tokens, features])
}

#[backend_extension(Flex, Autodiff)]
pub trait RotaryOp: Backend {
    fn rotary(x: FloatTensor<Self>, table: Arc<RotaryTable>) -> FloatTensor<Self>;
}

impl RotaryOp for Flex {
    fn rotary(x: FlexTensor, table: Arc<RotaryTable>) -> FlexTensor {
        rotate(&contiguous(x), &table, 1.0)
    }
}

impl<C: CheckpointStrategy> RotaryOp for Autodiff<Flex, C> {
    fn rotary(x: FloatTensor<Self>, table: Arc<RotaryTable>) -> FloatTensor<Self> {
        let node = x.node();
        let output = rotate(&contiguous(x.into_primitive()), &table, 1.0);
        match Rotary.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(table, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

#[derive(Debug)]
struct Rotary;

impl Backward<Flex, 1> for Rotary {
    type State = Arc<RotaryTable>;

    /// The transpose of a rotation is the rotation back, by the same amplitude.
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, rotate(&grad, &ops.state, -1.0));
        }
    }
}

/// `direction` is 1 to rotate and −1 to rotate back.
fn rotate(x: &FlexTensor, table: &RotaryTable, direction: f32) -> FlexTensor {
    let [tokens, features] = shape2(x);
    let mut output = uninit(tokens * features);
    output.par_chunks_mut(features).zip(elements(x).par_chunks(features)).enumerate().for_each(
        |(token, (output, x))| {
            let (cos, sin) = table.row(token);
            let head_dim = 2 * table.half;
            for (output, x) in output.chunks_mut(head_dim).zip(x.chunks(head_dim)) {
                rotate_head(x, cos, sin, direction, output);
            }
        },
    );
    tensor(output, [tokens, features])
}

simd_fn! {
    fn rotate_head(x: &[f32], cos: &[f32], sin: &[f32], direction: f32, output: &mut [f32]) {
        let half = cos.len();
        let (x_first, x_second) = x.split_at(half);
        let (first, second) = output.split_at_mut(half);
        let (x_second, second, sin) = (&x_second[..half], &mut second[..half], &sin[..half]);
        for i in 0..half {
            let sin = direction * sin[i];
            first[i] = mul_add::<FMA>(x_first[i], cos[i], -x_second[i] * sin);
            second[i] = mul_add::<FMA>(x_second[i], cos[i], x_first[i] * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random, track};

    #[test]
    fn forward_and_gradient_equal_the_reference() {
        crate::simd::testing::at_every_level(|level| {
            for (positions, heads, half) in [(vec![0], 1, 1), (vec![0, 1, 2, 0, 1], 3, 5), (vec![7, 2000, 3], 2, 32)] {
                let frequencies: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
                let table = Arc::new(RotaryTable::new(&positions, &frequencies));
                let shape = [positions.len(), heads * 2 * half];
                let (x, scale) = (random(shape, 1), random(shape, 2));
                let run = |op: fn(Tensor<2>, Arc<RotaryTable>) -> Tensor<2>| {
                    let x = track(&x);
                    let output = op(x.clone(), table.clone());
                    let grads = (output.clone() * scale.clone()).sum().backward();
                    [output.inner(), x.grad(&grads).unwrap()]
                };
                for (ours, theirs) in run(rotary).into_iter().zip(run(reference)) {
                    assert_close(ours, theirs, 1e-6, &format!("{level:?} {positions:?}"));
                }
            }
        });
    }
}
