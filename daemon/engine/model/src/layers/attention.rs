//! Self-attention of one block.

use std::sync::Arc;

use burn::tensor::Tensor;
use justtrain_kernels::{Dropout, Heads, Products, RotaryTable, Scores, Segments, biased_attention, rotary};

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
    /// Index of its table in the pass, where positions are told by distance.
    pub(crate) position_bias: Option<usize>,
}

impl Attention {
    /// `x` is `[tokens, hidden]`, of `segments`. With a cache, keys and values are added to it and all of them are attended to.
    /// `dropout` is of the attention's weights.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        segments: &Arc<Segments>,
        pass: &Pass,
        cache: Option<&mut LayerCache<'_>>,
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
        // A cache is read whole at every token, too much to round it all anew.
        let (k, v, products) = match cache {
            None => (k, v, self.o.weight.products),
            Some(cache) => {
                let (k, v) = cache.extend(k, v);
                (k, v, Products::F32)
            }
        };
        let scores = Scores { dropout, products, ..self.scores };
        let bias = self.position_bias.map(|index| pass.biases[index].bias());
        self.o.forward(biased_attention(q, k, v, bias, self.heads, segments.clone(), scores), pass.mode)
    }
}
