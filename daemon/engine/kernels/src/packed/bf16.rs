//! bfloat16: the upper half of an `f32`.

use std::sync::Arc;

use bytemuck::cast_slice;
use half::bf16;
use rayon::prelude::*;

use super::{Builder, Form};
use crate::simd::simd_fn;

#[derive(Debug)]
pub(super) struct Bf16(Vec<bf16>);

impl Bf16 {
    pub(super) fn with_capacity(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }
}

impl Builder for Bf16 {
    fn push(&mut self, weights: &[f32]) {
        self.0.par_extend(weights.par_iter().map(|&weight| bf16::from_f32(weight)));
    }

    fn finish(self: Box<Self>) -> Arc<dyn Form> {
        Arc::new(*self)
    }
}

impl Form for Bf16 {
    fn decode(&self, start: usize, output: &mut [f32]) {
        widen(cast_slice(&self.0[start..][..output.len()]), output);
    }

    fn bytes(&self) -> usize {
        self.0.len() * 2
    }
}

simd_fn! {
    fn widen(bits: &[u16], output: &mut [f32]) {
        let _ = FMA;
        for (output, &bits) in output.iter_mut().zip(bits) {
            *output = f32::from_bits(u32::from(bits) << 16);
        }
    }
}
