//! Attention of a decoder to what its encoder has made.

use burn::tensor::Tensor;
use justtrain_kernels::{Dropout, Heads, Products, Scores, attention};

use super::{Norm, Projection};
use crate::block::Pass;
use crate::generate::LayerCache;
use crate::parameters::Parameter;

#[derive(Debug, Clone)]
pub(crate) struct CrossAttention {
    /// Of the decoder's tokens.
    pub(crate) norm: Norm,
    /// Queries, keys, values and output.
    pub(crate) projections: [Projection; 4],
    pub(crate) heads: Heads,
    pub(crate) scale: f32,
}

impl CrossAttention {
    /// `x` is `[targets, hidden]`; `sources` is `[sources, hidden]`, or nothing where the cache has their keys and values.
    /// `dropout` is of the attention's weights.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        sources: Option<Tensor<2>>,
        pass: &Pass,
        cache: Option<&mut LayerCache<'_>>,
        dropout: Option<Dropout>,
    ) -> Tensor<2> {
        let [q, k, v, o] = &self.projections;
        let read = sources.map(|sources| (k.forward(sources.clone(), pass.mode), v.forward(sources, pass.mode)));
        let (read, products) = match cache {
            None => (read, o.weight.products),
            Some(cache) => (cache.sources(read), Products::F32),
        };
        let (keys, values) = read.expect("a source is read before its target is said");
        let scores = Scores { causal: false, dropout, products, ..Scores::scaled(self.scale) };
        let pairs = pass.sources.as_ref().expect("targets have sources").pairs.clone();
        let queries = q.forward(self.norm.forward(x), pass.mode);
        o.forward(attention(queries, keys, values, self.heads, pairs, scores), pass.mode)
    }

    pub(crate) fn parameters_mut(&mut self) -> impl Iterator<Item = Parameter<'_>> {
        let Self { norm, projections, .. } = self;
        norm.parameters_mut().chain(projections.iter_mut().flat_map(Projection::parameters_mut))
    }
}
