//! Differentiable ops for training language models, as a burn backend extension.
//!
//! One file is one op: its public function on [`burn::tensor::Tensor`], its extension trait, the forward and backward
//! on the CPU backend, a plain-burn `reference`, and tests of the forward and of every gradient against it.
//! Activations are `[tokens, features]` throughout: batches are packed without padding, and only [`attention`] and
//! [`rotary`] know where one sample ends and the next begins.
//!
//! On a GPU every op is its `reference`; [`device`] has the choice.
//!
//! To add an op, copy the shape of [`gated`], the smallest one.

pub mod attention;
pub mod bf16;
pub mod blockwise;
pub mod cross_entropy;
pub mod device;
pub mod divergence;
pub mod dropout;
pub mod embedding;
pub mod f16;
pub mod gated;
pub mod linear;
pub mod packed;
pub mod parity;
pub mod position_bias;
pub mod random;
pub mod residual;
pub mod rms_norm;
pub mod rotary;
pub mod row_store;
pub mod simd;
pub mod singular;

mod awake;
mod buffer;
mod kept;
mod matmul;
mod matrix;
mod outer;
#[cfg(target_arch = "x86_64")]
mod panels;
mod small;
mod soft_cap;
#[cfg(test)]
mod testing;
mod weight;

pub use attention::{Heads, Scores, Segments, attention, biased_attention};
pub use awake::awake;
pub use cross_entropy::{Loss, OutputLayer, Targets, linear_cross_entropy, linear_loss, score_targets};
pub use divergence::{Softened, divergence};
pub use dropout::{Dropout, dropout};
pub use embedding::embedding;
pub use gated::{Activation, gated};
pub use linear::{Factors, linear};
pub use packed::{Format, Packed};
pub use position_bias::{Buckets, PositionBias};
pub use residual::residual;
pub use rms_norm::rms_norm;
pub use rotary::{RotaryTable, rotary};
pub use row_store::write_rows;
pub use weight::{Numbers, Products, Weight};
