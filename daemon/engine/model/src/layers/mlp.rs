//! The feed-forward half of a block: projections up, an activation, a projection down.

use burn::tensor::{Tensor, activation};
use justtrain_kernels::gated;

use super::{Joint, Projection};
use crate::Mode;
use crate::config::{MlpKind, PlainActivation};

#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    /// Gate and up, or up alone.
    pub(crate) up: Joint,
    pub(crate) down: Projection,
    pub(crate) kind: MlpKind,
}

impl Mlp {
    /// `x` is `[tokens, hidden]`.
    pub(crate) fn forward(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let mut widened = self.up.forward(x, mode);
        let up = widened.pop().expect("a feed-forward network widens");
        let activated = match self.kind {
            MlpKind::Gated(kind) => gated(widened.pop().expect("a gate"), up, kind, self.down.weight.products),
            MlpKind::Plain(PlainActivation::Gelu) => activation::gelu(up),
            MlpKind::Plain(PlainActivation::GeluTanh) => activation::gelu_approximate(up),
            MlpKind::Plain(PlainActivation::Relu) => activation::relu(up),
        };
        self.down.forward(activated, mode)
    }
    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.up.projections.iter().chain([&self.down])
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.up.projections.iter_mut().chain([&mut self.down])
    }
}
