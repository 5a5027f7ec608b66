//! What training leaves on the disk: an adapter's folder, or a whole model's.

use std::path::Path;

use justtrain_worker_api::Problem;

use crate::Decoder;
use crate::adapters::load_peft;
use crate::export::load_model;

/// Whether the folder holds a whole model and no adapter.
pub fn is_whole_model(folder: &Path) -> bool {
    folder.join("config.json").is_file() && !folder.join("adapter_config.json").is_file()
}

/// Makes the base model the tuned one: puts the adapter on it, or takes the other's weights.
pub fn apply_tuned(decoder: &mut Decoder, folder: &Path) -> Result<(), Problem> {
    if is_whole_model(folder) { load_model(decoder, folder) } else { load_peft(decoder, folder).map(drop) }
}
