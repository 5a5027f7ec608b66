//! A weight matrix as a layer holds it: a tensor, or a frozen matrix in fewer bits.

use burn::tensor::{Device, Tensor};

use crate::packed::Packed;

/// `[outputs, inputs]`.
#[derive(Debug, Clone)]
// There are a few hundred of these, each beside megabytes of numbers.
#[allow(clippy::large_enum_variant)]
pub enum Weight {
    /// May be trained.
    Dense(Tensor<2>),
    /// Never changes, has no gradient, and is decoded a tile at a time where it is used.
    Packed(Packed),
}

impl Weight {
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Weight::Dense(weight) => weight.dims(),
            Weight::Packed(packed) => packed.dims(),
        }
    }

    /// Σ w² of each row, without gradient tracking. `device` is where those of packed ones go.
    pub fn row_squares(&self, device: &Device) -> Tensor<1> {
        match self {
            Weight::Dense(weight) => weight.clone().inner().square().sum_dim(1).squeeze_dim(1),
            Weight::Packed(packed) => packed.row_squares(device),
        }
    }

    /// The same numbers without gradient tracking, sharing their memory.
    pub fn inner(self) -> Self {
        match self {
            Weight::Dense(weight) => Weight::Dense(weight.inner()),
            packed => packed,
        }
    }

    /// All numbers as a tensor: what ops without a kernel of their own go through. `device` is where packed ones go.
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        match self {
            Weight::Dense(weight) => weight.clone(),
            Weight::Packed(packed) => packed.to_tensor(device),
        }
    }
}

impl From<Tensor<2>> for Weight {
    fn from(weight: Tensor<2>) -> Self {
        Weight::Dense(weight)
    }
}

impl From<Packed> for Weight {
    fn from(packed: Packed) -> Self {
        Weight::Packed(packed)
    }
}
