//! IEEE half precision.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{Builder, Form};

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
        self.0[start..].convert_from_f32_slice(weights);
    }

    fn finish(self: Box<Self>) -> Arc<dyn Form> {
        Arc::new(*self)
    }
}

impl Form for F16 {
    fn decode(&self, start: usize, output: &mut [f32]) {
        self.0[start..][..output.len()].convert_to_f32_slice(output);
    }

    fn bytes(&self) -> usize {
        self.0.len() * 2
    }

    #[cfg(feature = "gpu")]
    fn upload(&self, _: usize, device: &burn::tensor::Device) -> Box<dyn super::on_gpu::OnGpu> {
        Box::new(super::on_gpu::Plain::narrow(&self.0, device))
    }
}
