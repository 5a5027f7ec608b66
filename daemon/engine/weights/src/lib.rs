//! Weights on disk, seen as one Hugging Face checkpoint whatever the file format.
//!
//! [`gguf`] reads llama.cpp's format, [`safetensors`] reads and writes Hugging Face's; [`Checkpoint`] shows either as
//! `config.json` keys and tensors by Hugging Face names. Everything is memory-mapped and tensors are decoded to `f32`
//! straight into the caller's memory; nothing here knows a tensor library.

mod checkpoint;
pub mod gguf;
mod mapped;
mod pickle;
pub mod safetensors;
mod stored;

pub use checkpoint::Checkpoint;
pub(crate) use checkpoint::missing_tensor;
pub use stored::{SixteenBits, StoredTensor};
