//! A model whose own weights were trained, as a Hugging Face folder; and back from there.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::{Dtype, Entry, write_folder};
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use super::{SHARD_BYTES, in_float32, with_classifier};
use crate::Decoder;
use crate::classifier::labels;
use crate::parameters::{Parameter, Parameters, Trained};

/// Writes the decoder's weights and `config`, the base model's `config.json`, into `folder`, which is made where it is
/// missing; the caller adds the tokenizer. Returns the bytes written.
pub fn save_model(decoder: &Decoder, config: &Value, folder: &Path) -> Result<u64, Problem> {
    fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
    // Clones share the memory.
    let mut tuned = decoder.clone();
    let parameters = tuned.trained_mut(Trained::Weights);
    let names = decoder.config().names;
    let entry = |parameter: &Parameter<'_>| Entry {
        name: names.in_file(&parameter.name).into_owned(),
        shape: parameter.stored_shape(),
        dtype: Dtype::F32,
    };
    let entries: Vec<Entry> = parameters.iter().map(entry).collect();
    let by_name: HashMap<Cow<'_, str>, &Parameter<'_>> =
        parameters.iter().map(|p| (names.in_file(&p.name), p)).collect();
    let size = write_folder(folder, &entries, SHARD_BYTES, |entry| Ok(by_name[entry.name.as_str()].stored_values()))?;
    let text = format!("{:#}\n", in_float32(&with_classifier(config, decoder)));
    let path = folder.join("config.json");
    fs::write(&path, &text).map_err(|error| cannot_write(&path, &error))?;
    Ok(size + text.len() as u64)
}

/// Puts the weights of such a folder on a decoder of the same shape.
pub fn load_model(decoder: &mut Decoder, folder: &Path) -> Result<(), Problem> {
    let checkpoint = Checkpoint::open(folder)?;
    if let Some(shape) = checkpoint.shape(&decoder.config().names.classifier.weight()) {
        decoder.attach_classifier(labels(&checkpoint, shape[0]), 0);
    }
    let names = decoder.config().names;
    for mut parameter in decoder.trained_mut(Trained::Weights) {
        let name = names.in_file(&parameter.name).into_owned();
        parameter.set_stored(checkpoint.read_f32(&name, &parameter.stored_shape())?);
    }
    Ok(())
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Problem {
    Problem::error(
        ProblemCode::DiskFull,
        format!("the model cannot be written: {error}"),
        format!("无法写入模型：{error}"),
    )
    .file(path.display())
    .fix("free some disk space, or name another folder", "请释放磁盘空间，或指定其他文件夹")
}
