//! Adapters: small trainable weights beside frozen ones. One file each.

mod dora;
mod in_full;
mod loftq;
mod lora;
mod olora;
mod patterns;
mod peft;
mod peft_config;
mod pissa;
mod start;
mod tables;

pub use dora::Dora;
pub use in_full::TrainedBias;
pub use lora::{LoraConfig, LoraTargets, attach_lora};
pub use olora::{Earlier, attach_beside};
pub use patterns::Patterns;
pub(crate) use peft::{adapter_labels, kind_of_start, trains_in_full};
pub use peft::{base_formats, load_peft, save_peft};
pub use peft_config::{base_model, read_peft_config};
pub(crate) use start::take_apart;
pub use start::{LoraStart, Start};
pub use tables::TableLora;
