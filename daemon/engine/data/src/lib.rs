//! Text to token ids with a loss mask. Burn-free: everything here is plain Rust on vectors.
//!
//! A data file becomes [`formats::Conversation`]s, a chat template and a tokenizer make [`Sample`]s of them, and
//! [`packing`] lays those out as padding-free batches.

pub mod chat_template;
mod check;
mod encode;
pub mod formats;
pub mod generators;
mod images;
mod labels;
mod message;
mod mixing;
pub mod packing;
mod preview;
mod split;
pub mod tokenizer;

pub use chat_template::{Chat, ChatTemplate, End};
pub use check::check;
pub use encode::{Class, EncodeOptions, Encoder, Images, Sample, Seq2Seq, shares};
pub use formats::{Conversation, Judgement, Loaded, read_conversations};
pub use images::{ImageProcessor, Pixels};
pub use labels::Labels;
pub use message::Message;
pub use mixing::{MixedSampler, MixedState, Mixing};
pub use packing::{Batch, Sampler, SamplerState};
pub use preview::preview;
pub use split::split;
pub use tokenizer::Tokenizer;
