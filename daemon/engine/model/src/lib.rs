//! The decoder, its families, adapters, generation and export.
//!
//! There is one network, [`Decoder`], described by a [`DecoderConfig`]. A family ([`families`]) says how a Hugging Face
//! `config.json` becomes that description; it never mentions adapters. [`layers::Projection`] is where an adapter meets a
//! weight inside the blocks; embedding table and output layer have theirs in `adapters/tables.rs`.

pub mod adapters;
mod block;
mod classifier;
mod config;
mod decoder;
pub mod device;
mod embeddings;
pub mod export;
pub mod families;
pub mod generate;
mod image;
pub mod layers;
mod names;
pub mod parameters;
mod rotation;
mod tuned;
mod weights;

pub use block::{Block, Pass};
pub use classifier::{Classifier, are_unnamed, largest};
pub use config::{
    Biases, DecoderConfig, ExpertsConfig, LayerConfig, LinearShape, MlpKind, NormKind, NormPlace, Patches,
    PlainActivation, Positions, Seq2Seq, Stack,
};
pub use decoder::{Decoder, Head, Input, Mode, Sources};
pub use embeddings::{EmbeddingNorm, Embeddings, Taken};
pub use image::ImageEmbeddings;
pub use justtrain_kernels as kernels;
pub use tuned::{apply_tuned, is_whole_model, replaces_weights, tuned_labels};
pub use weights::{WeightFormat, WeightFormats, some_matrix};
