//! A Hugging Face folder whose weights have the adapter folded in: `W + s·B·A`, in `f32`.

use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::{Dtype, Entry, write_folder};
use justtrain_worker_api::{Problem, ProblemCode};

use super::{SHARD_BYTES, in_float32, with_score};
use crate::Decoder;
use crate::parameters::SCORE;

/// Writes `config.json` and the weights into `folder`, one tensor at a time; the caller adds the tokenizer.
/// Returns the bytes written.
pub fn export_merged(
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    folder: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<u64, Problem> {
    let cannot_write = |error: std::io::Error| {
        Problem::error(
            ProblemCode::DiskFull,
            format!("the model cannot be written: {error}"),
            format!("无法写入模型：{error}"),
        )
        .file(folder.display())
        .fix("free some disk space, or name another folder", "请释放磁盘空间，或指定其他文件夹")
    };
    fs::create_dir_all(folder).map_err(cannot_write)?;
    let score =
        decoder.score().map(|score| Entry { name: SCORE.to_owned(), shape: score.dims().to_vec(), dtype: Dtype::F32 });
    let entries: Vec<Entry> = checkpoint
        .names()
        .filter_map(|name| {
            Some(Entry { name: name.to_owned(), shape: checkpoint.shape(name)?.to_vec(), dtype: Dtype::F32 })
        })
        .filter(|entry| entry.name != SCORE)
        .chain(score)
        .collect();
    let mut done = 0;
    let size = write_folder(folder, &entries, SHARD_BYTES, |entry| {
        let mut weight = match decoder.score().filter(|_| entry.name == SCORE) {
            Some(score) => score.clone().into_data().try_into_vec().expect("the head is f32"),
            None => checkpoint.read_f32(&entry.name, &entry.shape)?,
        };
        if let Some(update) = adapter_update(decoder, &entry.name) {
            for (weight, update) in weight.iter_mut().zip(update) {
                *weight += update;
            }
        }
        done += 1;
        progress(done, entries.len() as u64);
        Ok(weight)
    })?;
    let config = in_float32(checkpoint.config());
    let config = if decoder.score().is_some() { with_score(&config) } else { config };
    let text = format!("{config:#}\n");
    fs::write(folder.join("config.json"), &text).map_err(cannot_write)?;
    Ok(size + text.len() as u64)
}

/// `s·B·A` of the layer with this weight, where it has an adapter, in the order that the weight is stored in.
fn adapter_update(decoder: &Decoder, weight_name: &str) -> Option<Vec<f32>> {
    let layer = weight_name.strip_suffix(".weight")?;
    // A file of the bare model lacks the first part of each name.
    let is_layer = |name: &str| name == layer || name.split_once('.').is_some_and(|(_, bare)| bare == layer);
    let projection = decoder.projections().find(|projection| is_layer(&projection.name))?;
    let lora = projection.lora.as_ref()?;
    let update: Tensor<2> = lora.b.clone().matmul(lora.a.clone()) * lora.scale;
    let update = if projection.transposed { update.transpose() } else { update };
    Some(update.into_data().try_into_vec().expect("adapters are f32"))
}
