//! safetensors: Hugging Face's weight files, read without a copy and written tensor by tensor.

mod read;
mod write;

pub(crate) use read::Elements;
pub use read::SafetensorsFile;
pub use write::{Dtype, Entry, write, write_folder};
