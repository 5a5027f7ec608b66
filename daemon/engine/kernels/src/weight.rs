//! A weight matrix as a layer holds it: a tensor, or a frozen matrix in fewer bits; and how it is multiplied.

use burn::tensor::{Device, Tensor};

use crate::packed::Packed;

/// `[outputs, inputs]`.
#[derive(Debug, Clone)]
pub struct Weight {
    pub numbers: Numbers,
    pub products: Products,
}

/// To what the numbers of a product are rounded, of both sides and of its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// With AMX made of products in bfloat16, each number the sum of three (see [`crate::bf16`]).
    #[default]
    F32,
    /// bfloat16 with sums in `f32`, on a processor that has instructions for it (see [`crate::bf16`]), and elsewhere `f32`.
    Bf16,
    /// IEEE half precision with sums in `f32` (see [`crate::f16`]): beyond 65504 is infinity, and a gradient below 2⁻²⁵
    /// is lost, so losses are scaled up (Micikevicius et al. 2017, arXiv 1710.03740).
    F16,
}

#[derive(Debug, Clone)]
// There are a few hundred of these, each beside megabytes of numbers.
#[allow(clippy::large_enum_variant)]
pub enum Numbers {
    /// May be trained.
    Dense(Tensor<2>),
    /// Never changes, has no gradient, and is decoded a tile at a time where it is used.
    Packed(Packed),
}

impl Weight {
    pub fn with_products(self, products: Products) -> Self {
        Self { products, ..self }
    }

    pub fn dims(&self) -> [usize; 2] {
        match &self.numbers {
            Numbers::Dense(weight) => weight.dims(),
            Numbers::Packed(packed) => packed.dims(),
        }
    }

    /// Σ w² of each row, without gradient tracking. `device` is where those of packed ones go.
    pub fn row_squares(&self, device: &Device) -> Tensor<1> {
        match &self.numbers {
            Numbers::Dense(weight) => weight.clone().inner().square().sum_dim(1).squeeze_dim(1),
            Numbers::Packed(packed) => packed.row_squares(device),
        }
    }

    /// The same numbers without gradient tracking, sharing their memory.
    pub fn inner(self) -> Self {
        let numbers = match self.numbers {
            Numbers::Dense(weight) => Numbers::Dense(weight.inner()),
            packed => packed,
        };
        Self { numbers, ..self }
    }

    /// All numbers as a tensor: what ops without a kernel of their own go through. `device` is where packed ones go.
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        match &self.numbers {
            Numbers::Dense(weight) => weight.clone(),
            Numbers::Packed(packed) => packed.to_tensor(device),
        }
    }
}

impl From<Tensor<2>> for Weight {
    fn from(weight: Tensor<2>) -> Self {
        Numbers::Dense(weight).into()
    }
}

impl From<Packed> for Weight {
    fn from(packed: Packed) -> Self {
        Numbers::Packed(packed).into()
    }
}

impl From<Numbers> for Weight {
    fn from(numbers: Numbers) -> Self {
        Self { numbers, products: Products::default() }
    }
}
