//! One block of the network: attention and feed-forward, each with a norm and beside a residual.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use justtrain_kernels::{Dropout, RotaryTable, Scores, Segments, dropout, residual};
use justtrain_worker_api::Problem;

use crate::config::{DecoderConfig, Network, NormPlace, Positions};
use crate::generate::LayerCache;
use crate::layers::{Attention, Experts, Joint, Mlp, Norm, Projection, Router};
use crate::parameters::{Parameter, Parameters};
use crate::weights::Loader;
use crate::{LinearShape, Mode};

#[derive(Debug, Clone)]
pub struct Block {
    attention_norm: Norm,
    attention: Attention,
    attention_output_norm: Option<Norm>,
    mlp_norm: Norm,
    feed_forward: FeedForward,
    mlp_output_norm: Option<Norm>,
    norm_place: NormPlace,
    pub(crate) dropout: BlockDropout,
}

#[derive(Debug, Clone)]
enum FeedForward {
    Dense {
        network: Box<Mlp>,
        /// Adapters can be put on it; see [`DecoderConfig::linears`].
        adaptable: bool,
    },
    Experts(Box<Experts>),
}

impl FeedForward {
    fn load(loader: &Loader<'_>, config: &DecoderConfig, layer: usize) -> Result<Self, Problem> {
        let projection = |(name, shape)| loader.projection(name, shape, config.names.transposed);
        let load = |Network { up, widths, down }: Network| {
            let projections = up.into_iter().map(projection).collect::<Result<_, Problem>>()?;
            Ok(Mlp { up: Joint { projections, widths }, down: projection(down)?, kind: config.mlp })
        };
        let mut networks = config.networks(layer).into_iter().map(load).collect::<Result<Vec<Mlp>, Problem>>()?;
        Ok(match (config.experts_of(layer), config.router(layer)) {
            (Some(experts), Some((name, shape))) => {
                let weight = loader.in_full_precision(&format!("{name}.weight"), shape)?;
                Self::Experts(Box::new(Experts { router: Router { name, weight }, networks, config: experts }))
            }
            _ => {
                let network = networks.pop().expect("a block without experts has one network");
                Self::Dense { network: Box::new(network), adaptable: config.experts.is_none() }
            }
        })
    }

    fn forward(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        match self {
            Self::Dense { network, .. } => network.forward(x, mode),
            Self::Experts(experts) => experts.forward(x, mode),
        }
    }

    /// The network that adapters can be put on.
    fn adaptable(&self) -> Option<&Mlp> {
        match self {
            Self::Dense { network, adaptable: true } => Some(network),
            _ => None,
        }
    }

    fn adaptable_mut(&mut self) -> Option<&mut Mlp> {
        match self {
            Self::Dense { network, adaptable: true } => Some(network),
            _ => None,
        }
    }

    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        match self {
            Self::Dense { network, .. } => network.projections_mut().flat_map(Projection::parameters_mut).collect(),
            Self::Experts(experts) => experts.parameters_mut().collect(),
        }
    }
}

/// What is dropped in a block while it is trained.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BlockDropout {
    /// Share of the attention's weights.
    pub(crate) attention: f32,
    /// Share of what attention and feed-forward network add to the residual.
    pub(crate) residual: f32,
    /// Makes this block's dropout differ from every other's.
    pub(crate) index: u64,
}

impl BlockDropout {
    fn at(self, place: u64, probability: f32, mode: Mode) -> Option<Dropout> {
        let seed = mode.dropout_seed.filter(|_| probability > 0.0)?;
        // An odd constant, and another than that of adapters, keeps the seeds of neighbouring places far apart.
        let place = (3 * self.index + place + 1).wrapping_mul(0x8EBC_6AF0_9C88_C6E3);
        Some(Dropout { probability, seed: seed.wrapping_add(place) })
    }
}

/// What all blocks of one forward pass share.
#[derive(Debug, Clone)]
pub struct Pass {
    /// One for each rotation of the decoder.
    pub(crate) tables: Vec<Arc<RotaryTable>>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) mode: Mode,
}

impl Block {
    pub(crate) fn load(loader: &Loader<'_>, config: &DecoderConfig, layer: usize) -> Result<Self, Problem> {
        let (names, at) = (&config.names.block, config.layers[layer]);
        let full = |part: &str| config.module(layer, part);
        let norm = |part: &'static str| loader.norm(full(part), config.hidden_size, config);
        let projection = |shape: LinearShape| loader.projection(full(shape.name), shape, config.names.transposed);
        let joint = |shapes: Vec<LinearShape>, widths: &[usize]| {
            let projections = shapes.into_iter().map(projection).collect::<Result<_, Problem>>()?;
            Ok::<_, Problem>(Joint { projections, widths: widths.to_vec() })
        };
        let head_norm = |part: &'static str| loader.norm(full(part), config.heads.dim, config);
        Ok(Self {
            attention_norm: norm(names.attention_norm)?,
            attention: Attention {
                qkv: joint(config.qkv(), &config.qkv_widths())?,
                qk_norms: names.qk_norms.map(|[q, k]| Ok::<_, Problem>([head_norm(q)?, head_norm(k)?])).transpose()?,
                o: projection(config.attention_output())?,
                heads: config.heads,
                scores: Scores {
                    soft_cap: config.attention_soft_cap,
                    causal: config.causal,
                    window: at.window,
                    ..Scores::scaled(config.attention_scale)
                },
                rotation: match &config.positions {
                    Positions::Rotary(_) => Some(at.rotation),
                    Positions::Learned { .. } => None,
                },
            },
            attention_output_norm: names.attention_output_norm.map(norm).transpose()?,
            mlp_norm: norm(names.mlp_norm)?,
            feed_forward: FeedForward::load(loader, config, layer)?,
            mlp_output_norm: names.mlp_output_norm.map(norm).transpose()?,
            norm_place: config.norm_place,
            dropout: BlockDropout::default(),
        })
    }

    pub(crate) fn device(&self) -> Device {
        self.mlp_norm.weight.device()
    }

    /// `x` is `[tokens, hidden]`, and so is the result.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.forward_cached(x, pass, None)
    }

    pub(crate) fn forward_cached(&self, x: Tensor<2>, pass: &Pass, cache: Option<LayerCache<'_>>) -> Tensor<2> {
        let normed = |norm: &Option<Norm>, x: Tensor<2>| match norm {
            None => x,
            Some(norm) => norm.forward(x),
        };
        let BlockDropout { attention, residual: share, .. } = self.dropout;
        let dropped = |place, x| match self.dropout.at(place, share, pass.mode) {
            None => x,
            Some(how) => dropout(x, how),
        };
        let of_weights = self.dropout.at(0, attention, pass.mode);
        let [before, after] = [NormPlace::Before, NormPlace::After]
            .map(|place| move |norm: &Norm, x: Tensor<2>| if self.norm_place == place { norm.forward(x) } else { x });
        let attended = self.attention.forward(before(&self.attention_norm, x.clone()), pass, cache, of_weights);
        let x = after(&self.attention_norm, residual(x, dropped(1, normed(&self.attention_output_norm, attended))));
        let fed = self.feed_forward.forward(before(&self.mlp_norm, x.clone()), pass.mode);
        after(&self.mlp_norm, residual(x, dropped(2, normed(&self.mlp_output_norm, fed))))
    }

    /// The linear layers that adapters can be put on.
    pub(crate) fn projections(&self) -> Vec<&Projection> {
        let Self { attention, feed_forward, .. } = self;
        let of_attention = attention.qkv.projections.iter().chain([&attention.o]);
        of_attention.chain(feed_forward.adaptable().into_iter().flat_map(Mlp::projections)).collect()
    }

    /// Of the hidden state, and of queries and keys.
    pub(crate) fn norms_mut(&mut self) -> Vec<&mut Norm> {
        let Self { attention_norm, attention, attention_output_norm, mlp_norm, mlp_output_norm, .. } = self;
        let mut norms = vec![attention_norm, mlp_norm];
        norms.extend(attention_output_norm);
        norms.extend(mlp_output_norm);
        norms.extend(attention.qk_norms.iter_mut().flatten());
        norms
    }

    pub(crate) fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let Self { attention, feed_forward, .. } = self;
        let of_attention = attention.qkv.projections.iter_mut().chain([&mut attention.o]);
        of_attention.chain(feed_forward.adaptable_mut().into_iter().flat_map(Mlp::projections_mut)).collect()
    }
}

impl Parameters for Block {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let Self {
            attention_norm,
            attention,
            attention_output_norm,
            mlp_norm,
            feed_forward,
            mlp_output_norm,
            norm_place: _,
            dropout: _,
        } = self;
        let mut parameters: Vec<Parameter<'_>> = attention_norm.parameters_mut().collect();
        parameters.extend(attention.qkv.projections.iter_mut().flat_map(Projection::parameters_mut));
        parameters.extend(attention.qk_norms.iter_mut().flatten().flat_map(Norm::parameters_mut));
        parameters.extend(attention.o.parameters_mut());
        parameters.extend(attention_output_norm.iter_mut().flat_map(Norm::parameters_mut));
        parameters.extend(mlp_norm.parameters_mut());
        parameters.extend(feed_forward.parameters_mut());
        parameters.extend(mlp_output_norm.iter_mut().flat_map(Norm::parameters_mut));
        parameters
    }
}
