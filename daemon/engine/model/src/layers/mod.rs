//! The pieces of a decoder block.

mod attention;
mod mlp;
mod projection;

pub use projection::{Lora, Projection};

pub(crate) use attention::Attention;
pub(crate) use mlp::Mlp;
