//! The pieces of a decoder block.

mod attention;
mod cross_attention;
mod experts;
mod in_full;
mod joint;
mod mlp;
mod norm;
mod position_bias;
mod projection;

pub use in_full::InFull;
pub use projection::{Lora, Projection};

pub(crate) use attention::Attention;
pub(crate) use cross_attention::CrossAttention;
pub(crate) use experts::{Experts, Router};
pub(crate) use joint::Joint;
pub(crate) use mlp::Mlp;
pub(crate) use norm::Norm;
pub(crate) use position_bias::BiasTable;
