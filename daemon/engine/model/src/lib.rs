//! The decoder, its families, adapters, generation and export.
//!
//! There is one network, [`Decoder`], described by a [`DecoderConfig`]. A family ([`families`]) says how a Hugging Face
//! `config.json` becomes that description; it never mentions adapters. [`layers::Projection`] is the one place where an
//! adapter meets a weight.

pub mod adapters;
mod config;
mod decoder;
pub mod export;
pub mod families;
pub mod generate;
pub mod layers;
mod weights;

pub use config::DecoderConfig;
pub use decoder::{Decoder, Input, Mode};
pub use justtrain_kernels as kernels;
pub use weights::{WeightFormat, WeightFormats};
