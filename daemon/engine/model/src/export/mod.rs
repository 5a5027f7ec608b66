//! Tuned models in formats that other tools load. One file a format.

mod merged;

pub use merged::export_merged;
