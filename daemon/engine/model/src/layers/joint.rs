//! Linear layers that have the same input: each in a matrix of its own, or all in one.

use burn::tensor::Tensor;

use super::Projection;
use crate::Mode;

#[derive(Debug, Clone)]
pub(crate) struct Joint {
    /// One for each output, or a single one whose outputs lie side by side.
    pub(crate) projections: Vec<Projection>,
    pub(crate) widths: Vec<usize>,
}

impl Joint {
    /// `x` is `[tokens, inputs]`; one `[tokens, width]` for each width.
    pub(crate) fn forward(&self, x: Tensor<2>, mode: Mode) -> Vec<Tensor<2>> {
        if self.projections.len() == self.widths.len() {
            return self.projections.iter().map(|projection| projection.forward(x.clone(), mode)).collect();
        }
        let all = self.projections[0].forward(x, mode);
        let mut start = 0;
        let part = |&width: &usize| {
            start += width;
            all.clone().narrow(1, start - width, width)
        };
        self.widths.iter().map(part).collect()
    }
}
