//! Adapters: small trainable weights beside frozen ones. One file each.

mod lora;
mod peft;

pub use lora::{LoraConfig, LoraTargets, attach_lora, keep_layers};
pub use peft::{base_formats, load_peft, save_peft};
