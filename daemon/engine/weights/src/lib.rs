//! Weights on disk, seen as one Hugging Face checkpoint whatever the file format.
//!
//! [`gguf`] reads llama.cpp's format, [`safetensors`] reads and writes Hugging Face's. Everything is memory-mapped and
//! tensors are decoded to `f32` straight into the caller's memory; nothing here knows a tensor library.

pub mod gguf;
mod mapped;
