//! One block of the decoder: attention and feed-forward, each behind a norm and beside a residual.

use std::sync::Arc;

use burn::tensor::Tensor;
use justtrain_kernels::{RotaryTable, Segments, rms_norm};

use crate::Mode;
use crate::generate::LayerCache;
use crate::layers::{Attention, Mlp, Projection};
use crate::parameters::{Parameter, Parameters};

#[derive(Debug, Clone)]
pub struct Block {
    /// Such as `model.layers.0`.
    pub(crate) name: String,
    pub(crate) input_norm: Tensor<1>,
    pub(crate) attention: Attention,
    pub(crate) post_attention_norm: Tensor<1>,
    pub(crate) mlp: Mlp,
}

/// What all blocks of one forward pass share.
#[derive(Debug, Clone)]
pub struct Pass {
    pub(crate) table: Arc<RotaryTable>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) mode: Mode,
    pub(crate) epsilon: f32,
}

impl Block {
    /// `x` is `[tokens, hidden]`, and so is the result.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.forward_cached(x, pass, None)
    }

    pub(crate) fn forward_cached(&self, x: Tensor<2>, pass: &Pass, cache: Option<LayerCache<'_>>) -> Tensor<2> {
        let normed = rms_norm(x.clone(), self.input_norm.clone(), pass.epsilon);
        let x = x + self.attention.forward(normed, &pass.table, &pass.segments, cache, pass.mode);
        let normed = rms_norm(x.clone(), self.post_attention_norm.clone(), pass.epsilon);
        x + self.mlp.forward(normed, pass.mode)
    }

    pub(crate) fn projections(&self) -> [&Projection; 7] {
        let Self { attention, mlp, .. } = self;
        [&attention.q, &attention.k, &attention.v, &attention.o, &mlp.gate, &mlp.up, &mlp.down]
    }

    pub(crate) fn projections_mut(&mut self) -> [&mut Projection; 7] {
        let Self { attention, mlp, .. } = self;
        [
            &mut attention.q,
            &mut attention.k,
            &mut attention.v,
            &mut attention.o,
            &mut mlp.gate,
            &mut mlp.up,
            &mut mlp.down,
        ]
    }
}

impl Parameters for Block {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let Self { name, input_norm, attention, post_attention_norm, mlp } = self;
        let mut parameters = vec![Parameter::vector(format!("{name}.input_layernorm.weight"), input_norm)];
        for projection in [&mut attention.q, &mut attention.k, &mut attention.v, &mut attention.o] {
            parameters.extend(projection.parameters_mut());
        }
        parameters.push(Parameter::vector(format!("{name}.post_attention_layernorm.weight"), post_attention_norm));
        for projection in [&mut mlp.gate, &mut mlp.up, &mut mlp.down] {
            parameters.extend(projection.parameters_mut());
        }
        parameters
    }
}
