//! The feed-forward half of a block: SwiGLU between two projections up and one down.

use burn::tensor::Tensor;
use justtrain_kernels::swiglu;

use super::Projection;
use crate::Mode;

#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    pub(crate) gate: Projection,
    pub(crate) up: Projection,
    pub(crate) down: Projection,
}

impl Mlp {
    /// `x` is `[tokens, hidden]`.
    pub(crate) fn forward(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let gate = self.gate.forward(x.clone(), mode);
        self.down.forward(swiglu(gate, self.up.forward(x, mode)), mode)
    }
}
