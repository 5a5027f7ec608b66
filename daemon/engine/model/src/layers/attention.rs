//! Self-attention of one block.

use std::sync::Arc;

use burn::tensor::Tensor;
use justtrain_kernels::{Dropout, Heads, RotaryTable, Scores, attention, rotary};

use super::{Joint, Norm, Projection};
use crate::block::Pass;
use crate::generate::LayerCache;

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) qkv: Joint,
    /// Of each head's queries and keys, before they are rotated.
    pub(crate) qk_norms: Option<[Norm; 2]>,
    pub(crate) o: Projection,
    pub(crate) heads: Heads,
    pub(crate) scores: Scores,
    /// Index of its table in the pass; none where positions are not rotary.
    pub(crate) rotation: Option<usize>,
}

impl Attention {
    /// `x` is `[tokens, hidden]`. With a cache, keys and values are added to it and all of them are attended to.
    /// `dropout` is of the attention's weights.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        pass: &Pass,
        cache: Option<LayerCache<'_>>,
        dropout: Option<Dropout>,
    ) -> Tensor<2> {
        let [q, k, v] = self.qkv.forward(x, pass.mode).try_into().expect("queries, keys and values");
        let (q, k) = match &self.qk_norms {
            None => (q, k),
            Some([of_q, of_k]) => (of_q.forward_heads(q), of_k.forward_heads(k)),
        };
        let (q, k) = match self.rotation {
            None => (q, k),
            Some(index) => {
                let table: &Arc<RotaryTable> = &pass.tables[index];
                (rotary(q, table.clone()), rotary(k, table.clone()))
            }
        };
        let (k, v) = match cache {
            None => (k, v),
            Some(mut cache) => cache.extend(k, v),
        };
        let scores = Scores { dropout, products: self.o.weight.products, ..self.scores };
        self.o.forward(attention(q, k, v, self.heads, pass.segments.clone(), scores), pass.mode)
    }
}
