//! IEEE half precision.

use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use half::f16;
use rayon::prelude::*;

use super::{Builder, Form};
use crate::f16::{round_all, widen};

/// Numbers that one task rounds.
const CHUNK: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct F16(Vec<f16>);

impl F16 {
    pub(super) fn with_capacity(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }
}

impl Builder for F16 {
    fn push(&mut self, weights: &[f32]) {
        let start = self.0.len();
        self.0.resize(start + weights.len(), f16::ZERO);
        let rounded = self.0[start..].par_chunks_mut(CHUNK).zip(weights.par_chunks(CHUNK));
        rounded.for_each(|(rounded, weights)| round_all(weights, cast_slice_mut(rounded)));
    }

    fn finish(self: Box<Self>) -> Arc<dyn Form> {
        Arc::new(*self)
    }
}

impl Form for F16 {
    fn decode(&self, start: usize, output: &mut [f32]) {
        widen(cast_slice(&self.0[start..][..output.len()]), output);
    }

    fn bytes(&self) -> usize {
        self.0.len() * 2
    }

    #[cfg(feature = "gpu")]
    fn upload(&self, _: usize, device: &burn::tensor::Device) -> Box<dyn super::on_gpu::OnGpu> {
        Box::new(super::on_gpu::Plain::narrow(&self.0, device))
    }
}
