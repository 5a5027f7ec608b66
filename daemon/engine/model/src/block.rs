//! One block of the network: attention and feed-forward, each with a norm and beside a residual.
//!
//! Of two stacks, the rows of sources and targets go through all blocks together: an encoder's block changes those of the sources,
//! a decoder's those of the targets, and the others pass. So a block is a function of all rows whichever stack it is in.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use justtrain_kernels::{Dropout, RotaryTable, Scores, Segments, dropout, residual};
use justtrain_worker_api::Problem;

use crate::config::{DecoderConfig, Network, NormPlace, Positions, Stack};
use crate::decoder::Sources;
use crate::generate::LayerCache;
use crate::layers::{Attention, BiasTable, CrossAttention, Experts, Joint, Mlp, Norm, Projection, Router};
use crate::names::Seq2SeqNames;
use crate::parameters::{Parameter, Parameters};
use crate::weights::Loader;
use crate::{LinearShape, Mode};

#[derive(Debug, Clone)]
pub struct Block {
    attention_norm: Norm,
    attention: Attention,
    attention_output_norm: Option<Norm>,
    /// Of a decoder with an encoder.
    cross_attention: Option<CrossAttention>,
    mlp_norm: Norm,
    feed_forward: FeedForward,
    mlp_output_norm: Option<Norm>,
    /// Of the encoder, in its last block.
    encoder_norm: Option<Norm>,
    norm_place: NormPlace,
    stack: Stack,
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
    /// Places are 0 to 2, or [`CROSS`] and the one behind it.
    fn at(self, place: u64, probability: f32, mode: Mode) -> Option<Dropout> {
        let seed = mode.dropout_seed.filter(|_| probability > 0.0)?;
        // An odd constant, and another than that of adapters, keeps the seeds of neighbouring places far apart.
        let place = (3 * self.index + place + 1).wrapping_mul(0x8EBC_6AF0_9C88_C6E3);
        Some(Dropout { probability, seed: seed.wrapping_add(place) })
    }
}

/// Place of a dropout in attention to an encoder: beyond those of all blocks.
const CROSS: u64 = 1 << 40;

/// What all blocks of one forward pass share.
#[derive(Debug, Clone)]
pub struct Pass {
    /// One for each rotation of the decoder.
    pub(crate) tables: Vec<Arc<RotaryTable>>,
    /// One for each stack, where positions are told by distance.
    pub(crate) biases: Vec<BiasTable>,
    pub(crate) segments: Arc<Segments>,
    pub(crate) sources: Option<Sources>,
    pub(crate) mode: Mode,
}

impl Parameters for Pass {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        self.biases.iter_mut().map(|table| table.parameter().not_in_every_batch()).collect()
    }
}

impl Block {
    pub(crate) fn load(loader: &Loader<'_>, config: &DecoderConfig, layer: usize) -> Result<Self, Problem> {
        let (names, at) = (config.block_names(layer), config.layers[layer]);
        let stack = config.stack(layer);
        let full = |part: &str| config.module(layer, part);
        let norm = |part: &'static str| loader.norm(full(part), config.hidden_size, config);
        let projection = |shape: LinearShape| loader.projection(full(shape.name), shape, config.names.transposed);
        let joint = |shapes: Vec<LinearShape>, widths: &[usize]| {
            let projections = shapes.into_iter().map(projection).collect::<Result<_, Problem>>()?;
            Ok::<_, Problem>(Joint { projections, widths: widths.to_vec() })
        };
        let cross_attention = |names: &Seq2SeqNames| {
            let projections = config.cross_linears(layer).into_iter().map(projection);
            let projections: Vec<Projection> = projections.collect::<Result<_, Problem>>()?;
            let projections = projections.try_into().expect("queries, keys, values and output");
            let (heads, scale) = (config.heads, config.attention_scale);
            Ok::<_, Problem>(CrossAttention { norm: norm(names.cross_norm)?, projections, heads, scale })
        };
        let encoder_norm = config.encoder_norm(layer);
        let head_norm = |part: &'static str| loader.norm(full(part), config.heads.dim, config);
        Ok(Self {
            attention_norm: norm(names.attention_norm)?,
            attention: Attention {
                qkv: joint(config.qkv(layer), &config.qkv_widths())?,
                qk_norms: names.qk_norms.map(|[q, k]| Ok::<_, Problem>([head_norm(q)?, head_norm(k)?])).transpose()?,
                o: projection(config.attention_output(layer))?,
                heads: config.heads,
                scores: Scores {
                    soft_cap: config.attention_soft_cap,
                    causal: config.causal && stack != Stack::Encoder,
                    window: at.window,
                    ..Scores::scaled(config.attention_scale)
                },
                rotation: match &config.positions {
                    Positions::Rotary(_) => Some(at.rotation),
                    Positions::Learned { .. } | Positions::Distances { .. } => None,
                },
                position_bias: match &config.positions {
                    Positions::Distances { .. } => Some(usize::from(stack == Stack::Decoder)),
                    Positions::Rotary(_) | Positions::Learned { .. } => None,
                },
            },
            cross_attention: config.decoder_names(layer).map(cross_attention).transpose()?,
            attention_output_norm: names.attention_output_norm.map(norm).transpose()?,
            mlp_norm: norm(names.mlp_norm)?,
            feed_forward: FeedForward::load(loader, config, layer)?,
            mlp_output_norm: names.mlp_output_norm.map(norm).transpose()?,
            encoder_norm: encoder_norm
                .map(|name| loader.norm(name.to_owned(), config.hidden_size, config))
                .transpose()?,
            norm_place: config.norm_place,
            stack,
            dropout: BlockDropout::default(),
        })
    }

    /// The name of the parameter that it shares with others, where it does.
    pub fn shared(&self, pass: &Pass) -> Option<String> {
        Some(pass.biases[self.attention.position_bias?].name())
    }

    pub(crate) fn device(&self) -> Device {
        self.mlp_norm.weight.device()
    }

    /// `x` is `[tokens, hidden]`, and so is the result.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.forward_cached(x, pass, None)
    }

    pub(crate) fn forward_cached(&self, x: Tensor<2>, pass: &Pass, cache: Option<LayerCache<'_>>) -> Tensor<2> {
        let (all, Some(sources)) = (x.dims()[0], &pass.sources) else {
            return self.forward_rows(x, None, &pass.segments, pass, cache);
        };
        let targets = x.clone().narrow(0, 0, all - sources.rows);
        let of_sources = (sources.rows > 0).then(|| x.clone().narrow(0, all - sources.rows, sources.rows));
        match (self.stack, of_sources) {
            (Stack::Encoder, None) => x,
            (Stack::Encoder, Some(read)) => {
                let read = self.forward_rows(read, None, &sources.segments, pass, None);
                let read = self.encoder_norm.as_ref().map_or(read.clone(), |norm| norm.forward(read));
                Tensor::cat(vec![targets, read], 0)
            }
            (_, of_sources) => {
                let said = self.forward_rows(targets, of_sources.clone(), &pass.segments, pass, cache);
                Tensor::cat(std::iter::once(said).chain(of_sources).collect(), 0)
            }
        }
    }

    /// `x` are the rows that the block changes; `sources` those that a decoder attends to, unless its cache has them.
    fn forward_rows(
        &self,
        x: Tensor<2>,
        sources: Option<Tensor<2>>,
        segments: &Arc<Segments>,
        pass: &Pass,
        mut cache: Option<LayerCache<'_>>,
    ) -> Tensor<2> {
        let normed = |norm: &Option<Norm>, x: Tensor<2>| match norm {
            None => x,
            Some(norm) => norm.forward(x),
        };
        let BlockDropout { attention, residual: share, .. } = self.dropout;
        let dropped = |place, x| match self.dropout.at(place, share, pass.mode) {
            None => x,
            Some(how) => dropout(x, how),
        };
        let of_weights = |place| self.dropout.at(place, attention, pass.mode);
        let [before, after] = [NormPlace::Before, NormPlace::After]
            .map(|place| move |norm: &Norm, x: Tensor<2>| if self.norm_place == place { norm.forward(x) } else { x });
        let input = before(&self.attention_norm, x.clone());
        let attended = self.attention.forward(input, segments, pass, cache.as_mut(), of_weights(0));
        let x = after(&self.attention_norm, residual(x, dropped(1, normed(&self.attention_output_norm, attended))));
        let x = match &self.cross_attention {
            None => x,
            Some(cross) => {
                let attended = cross.forward(x.clone(), sources, pass, cache.as_mut(), of_weights(CROSS));
                residual(x, dropped(CROSS + 1, attended))
            }
        };
        let fed = self.feed_forward.forward(before(&self.mlp_norm, x.clone()), pass.mode);
        after(&self.mlp_norm, residual(x, dropped(2, normed(&self.mlp_output_norm, fed))))
    }

    /// The linear layers that adapters can be put on.
    pub(crate) fn projections(&self) -> Vec<&Projection> {
        let Self { attention, cross_attention, feed_forward, .. } = self;
        let of_attention = attention.qkv.projections.iter().chain([&attention.o]);
        let of_cross = cross_attention.iter().flat_map(|cross| &cross.projections);
        of_attention.chain(of_cross).chain(feed_forward.adaptable().into_iter().flat_map(Mlp::projections)).collect()
    }

    /// Of the hidden state, and of queries and keys.
    pub(crate) fn norms_mut(&mut self) -> Vec<&mut Norm> {
        let Self {
            attention_norm,
            attention,
            attention_output_norm,
            cross_attention,
            mlp_norm,
            mlp_output_norm,
            encoder_norm,
            ..
        } = self;
        let mut norms = vec![attention_norm, mlp_norm];
        norms.extend(attention_output_norm);
        norms.extend(cross_attention.iter_mut().map(|cross| &mut cross.norm));
        norms.extend(mlp_output_norm);
        norms.extend(encoder_norm);
        norms.extend(attention.qk_norms.iter_mut().flatten());
        norms
    }

    pub(crate) fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let Self { attention, cross_attention, feed_forward, .. } = self;
        let of_attention = attention.qkv.projections.iter_mut().chain([&mut attention.o]);
        let of_cross = cross_attention.iter_mut().flat_map(|cross| &mut cross.projections);
        let of_network = feed_forward.adaptable_mut().into_iter().flat_map(Mlp::projections_mut);
        of_attention.chain(of_cross).chain(of_network).collect()
    }
}

impl Parameters for Block {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let Self {
            attention_norm,
            attention,
            attention_output_norm,
            cross_attention,
            mlp_norm,
            feed_forward,
            mlp_output_norm,
            encoder_norm,
            norm_place: _,
            stack: _,
            dropout: _,
        } = self;
        let mut parameters: Vec<Parameter<'_>> = attention_norm.parameters_mut().collect();
        parameters.extend(attention.qkv.projections.iter_mut().flat_map(Projection::parameters_mut));
        parameters.extend(attention.qk_norms.iter_mut().flatten().flat_map(Norm::parameters_mut));
        parameters.extend(attention.o.parameters_mut());
        parameters.extend(attention_output_norm.iter_mut().flat_map(Norm::parameters_mut));
        parameters.extend(cross_attention.iter_mut().flat_map(CrossAttention::parameters_mut));
        parameters.extend(mlp_norm.parameters_mut());
        parameters.extend(feed_forward.parameters_mut());
        parameters.extend(mlp_output_norm.iter_mut().flat_map(Norm::parameters_mut));
        parameters.extend(encoder_norm.iter_mut().flat_map(Norm::parameters_mut));
        parameters
    }
}
