//! A linear layer of the decoder: where adapters meet weights, but for the tables of the vocabulary.

use burn::tensor::Tensor;
use justtrain_kernels::{Dropout, Factors, Weight, linear};

use super::InFull;
use crate::Mode;
use crate::adapters::{Dora, Earlier, Start};
use crate::parameters::{EARLIER, Parameter};

/// A weight by its Hugging Face name, and the adapter on it.
#[derive(Debug, Clone)]
pub struct Projection {
    /// Such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// `[outputs, inputs]`.
    pub weight: Weight,
    pub bias: Option<Tensor<1>>,
    /// The matrix is stored `[inputs, outputs]`.
    pub transposed: bool,
    /// What of the layer itself is trained beside the adapters.
    pub in_full: InFull,
    pub lora: Option<Lora>,
}

/// A low-rank adapter: `scale · x·Aᵀ·Bᵀ` is added to the layer's output.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[rank, inputs]`.
    pub a: Tensor<2>,
    /// `[outputs, rank]`.
    pub b: Tensor<2>,
    /// `lora_alpha / rank`.
    pub scale: f32,
    /// Share of the adapter's inputs set to 0 while training.
    pub dropout: f32,
    /// Makes this layer's dropout differ from every other's.
    pub index: u64,
    /// Magnitudes beside the pair.
    pub dora: Option<Dora>,
    /// What the pair was before the first step, where it did not start at zero: with it the layer is the base model's.
    pub start: Option<Start>,
    /// Frozen pairs beside this one.
    pub earlier: Option<Earlier>,
}

impl Lora {
    /// A pair alone.
    pub fn new(a: Tensor<2>, b: Tensor<2>, scale: f32, dropout: f32, index: u64) -> Self {
        Self { a, b, scale, dropout, index, dora: None, start: None, earlier: None }
    }

    /// A and B of this pair and of all beside it.
    pub(crate) fn all(&self) -> [Tensor<2>; 2] {
        match &self.earlier {
            None => [self.a.clone(), self.b.clone()],
            Some(earlier) => earlier.joined(&self.a, &self.b),
        }
    }

    pub(crate) fn factors(&self, dropout_seed: Option<u64>) -> Factors {
        let [a, b] = self.all();
        Factors {
            a,
            b,
            scale: self.scale,
            dropout: dropout_seed.filter(|_| self.dropout > 0.0).map(|seed| Dropout {
                probability: self.dropout,
                // An odd constant keeps seeds of neighbouring layers far apart.
                seed: seed.wrapping_add((self.index + 1).wrapping_mul(0xA076_1D64_78BD_642F)),
            }),
        }
    }

    pub(crate) fn parameters_mut<'a>(&'a mut self, layer: &str) -> Vec<Parameter<'a>> {
        let Self { a, b, dora, earlier, .. } = self;
        let mut parameters =
            vec![Parameter::matrix(format!("{layer}.lora_A"), a), Parameter::matrix(format!("{layer}.lora_B"), b)];
        if let Some(dora) = dora {
            dora.forget_norms();
            parameters.push(Parameter::vector(format!("{layer}.lora_magnitude_vector"), &mut dora.magnitude));
        }
        if let Some(Earlier { a, b }) = earlier {
            parameters.push(Parameter::matrix(format!("{layer}{EARLIER}_A"), a));
            parameters.push(Parameter::matrix(format!("{layer}{EARLIER}_B"), b));
        }
        parameters
    }
}

impl Projection {
    /// `x` is `[tokens, inputs]`; the result `[tokens, outputs]`.
    pub fn forward(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let lora = self.lora.as_ref().filter(|_| mode.adapter);
        let adapter = match (&self.lora, mode.adapter) {
            (None, _) | (Some(Lora { start: None, .. }), false) => None,
            (Some(Lora { start: Some(start), scale, .. }), false) => {
                Some(Factors { a: start.a.clone(), b: start.b.clone(), scale: *scale, dropout: None })
            }
            (Some(lora), true) => Some(lora.factors(mode.dropout_seed)),
        };
        let output = linear(x, &self.weight, adapter);
        let output = match lora.and_then(|lora| Some((lora, lora.dora.as_ref()?))) {
            None => output,
            Some((lora, dora)) => output * dora.factors(&self.weight, &lora.a, &lora.b, lora.scale).unsqueeze(),
        };
        match &self.bias {
            None => output,
            Some(bias) => output + bias.clone().unsqueeze(),
        }
    }

    pub(crate) fn parameters_mut(&mut self) -> impl Iterator<Item = Parameter<'_>> {
        let Self { name, weight, bias, transposed, in_full, lora } = self;
        let bias = bias.as_mut().map(|bias| Parameter::vector(in_full.bias_name(name, lora.is_some()), bias));
        let adapter = lora.as_mut().map(|lora| lora.parameters_mut(name));
        let weight = Parameter::weight(in_full.weight_name(name), weight).stored_transposed(*transposed);
        std::iter::once(weight).chain(bias).chain(adapter.into_iter().flatten())
    }

    /// `[outputs, inputs]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.dims()
    }
}
