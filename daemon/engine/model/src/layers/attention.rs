//! Self-attention of one block.

use std::sync::Arc;

use burn::tensor::Tensor;
use justtrain_kernels::{Heads, RotaryTable, Segments, attention, rotary};

use super::Projection;
use crate::Mode;
use crate::generate::LayerCache;

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) q: Projection,
    pub(crate) k: Projection,
    pub(crate) v: Projection,
    pub(crate) o: Projection,
    pub(crate) heads: Heads,
}

impl Attention {
    /// `x` is `[tokens, hidden]`. With a cache, keys and values are added to it and all of them are attended to.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        table: &Arc<RotaryTable>,
        segments: &Arc<Segments>,
        cache: Option<LayerCache<'_>>,
        mode: Mode,
    ) -> Tensor<2> {
        let q = rotary(self.q.forward(x.clone(), mode), table.clone());
        let k = rotary(self.k.forward(x.clone(), mode), table.clone());
        let v = self.v.forward(x, mode);
        let (k, v) = match cache {
            None => (k, v),
            Some(mut cache) => cache.extend(k, v),
        };
        let scale = 1.0 / (self.heads.dim as f32).sqrt();
        self.o.forward(attention(q, k, v, self.heads, segments.clone(), scale), mode)
    }
}
