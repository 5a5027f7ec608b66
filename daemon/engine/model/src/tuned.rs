//! What training leaves on the disk: an adapter's folder, or a whole model's.

use std::path::Path;

use justtrain_weights::Checkpoint;
use justtrain_worker_api::Problem;

use crate::Decoder;
use crate::adapters::{adapter_labels, kind_of_start, load_peft, take_apart, trains_in_full};
use crate::classifier::labels;
use crate::export::load_model;
use crate::families::decoder_config;

/// Whether the folder holds a whole model and no adapter.
pub fn is_whole_model(folder: &Path) -> bool {
    folder.join("config.json").is_file() && !folder.join("adapter_config.json").is_file()
}

/// Whether the base model is another one once [`apply_tuned`] has changed the decoder, even with its adapter switched off.
pub fn replaces_weights(folder: &Path) -> Result<bool, Problem> {
    Ok(is_whole_model(folder) || trains_in_full(folder)?)
}

/// The labels of a tuned model that judges, by the number of their classes.
pub fn tuned_labels(folder: &Path) -> Result<Option<Vec<String>>, Problem> {
    if !is_whole_model(folder) {
        return adapter_labels(folder);
    }
    let checkpoint = Checkpoint::open(folder)?;
    let config = decoder_config(&checkpoint)?;
    Ok(checkpoint.shape(&config.names.classifier.weight()).map(|shape| labels(&checkpoint, shape[0])))
}

/// Makes the base model the tuned one: puts the adapter on it, or takes the other's weights. `checkpoint` is the base's.
pub fn apply_tuned(decoder: &mut Decoder, checkpoint: &Checkpoint, folder: &Path) -> Result<(), Problem> {
    if is_whole_model(folder) {
        return load_model(decoder, folder);
    }
    load_peft(decoder, folder)?;
    match kind_of_start(folder)? {
        None => Ok(()),
        Some(kind) => take_apart(decoder, checkpoint, &kind, folder),
    }
}
