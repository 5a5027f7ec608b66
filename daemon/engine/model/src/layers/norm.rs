//! A norm and its kinds.

use burn::tensor::Tensor;
use justtrain_kernels::rms_norm;

use super::InFull;
use crate::config::NormKind;
use crate::parameters::Parameter;

#[derive(Debug, Clone)]
pub(crate) struct Norm {
    /// Such as `model.norm`.
    pub(crate) name: String,
    pub(crate) weight: Tensor<1>,
    /// Of [`NormKind::Layer`].
    pub(crate) bias: Option<Tensor<1>>,
    pub(crate) kind: NormKind,
    pub(crate) epsilon: f32,
    pub(crate) in_full: InFull,
}

impl Norm {
    /// Each row of `x` on its own.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self.kind {
            NormKind::Rms => rms_norm(x, self.weight.clone(), self.epsilon),
            NormKind::RmsOnePlus => rms_norm(x, self.weight.clone() + 1.0, self.epsilon),
            NormKind::Layer => {
                let centred = x.clone() - x.mean_dim(1);
                let variance = (centred.clone() * centred.clone()).mean_dim(1);
                let normed = centred / (variance + self.epsilon).sqrt() * self.weight.clone().unsqueeze();
                self.bias.iter().fold(normed, |normed, bias| normed + bias.clone().unsqueeze())
            }
        }
    }

    /// Each head of each row of `x`, `[tokens, heads · dim]`, on its own.
    pub(crate) fn forward_heads(&self, x: Tensor<2>) -> Tensor<2> {
        let ([tokens, width], [dim]) = (x.dims(), self.weight.dims());
        self.forward(x.reshape([tokens * width / dim, dim])).reshape([tokens, width])
    }

    pub(crate) fn parameters_mut(&mut self) -> impl Iterator<Item = Parameter<'_>> {
        let Self { name, weight, bias, in_full, .. } = self;
        let bias = bias.as_mut().map(|bias| Parameter::vector(in_full.bias_name(name, false), bias));
        std::iter::once(Parameter::vector(in_full.weight_name(name), weight)).chain(bias)
    }
}
