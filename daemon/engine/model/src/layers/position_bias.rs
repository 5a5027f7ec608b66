//! The table of a stack's biases by distance, which all of its blocks share.

use burn::tensor::Tensor;
use justtrain_kernels::{Buckets, PositionBias};

use super::InFull;
use crate::parameters::Parameter;

#[derive(Debug, Clone)]
pub(crate) struct BiasTable {
    pub(crate) module: &'static str,
    pub(crate) in_full: InFull,
    /// `[buckets, heads]`.
    pub(crate) weight: Tensor<2>,
    pub(crate) buckets: Buckets,
}

impl BiasTable {
    pub(crate) fn bias(&self) -> PositionBias {
        PositionBias { table: self.weight.clone(), buckets: self.buckets }
    }

    /// Among the parameters.
    pub(crate) fn name(&self) -> String {
        self.in_full.weight_name(self.module)
    }

    pub(crate) fn parameter(&mut self) -> Parameter<'_> {
        Parameter::matrix(self.name(), &mut self.weight)
    }
}
