//! A Hugging Face folder whose weights have the adapter folded in: `W + s·B·A`, and where it has magnitudes each row of that
//! brought to its own; in `f32`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::{Dtype, Entry, write_folder};
use justtrain_worker_api::{Problem, ProblemCode};

use super::{SHARD_BYTES, in_float32, with_classifier};
use crate::Decoder;
use crate::adapters::TableLora;
use crate::layers::{InFull, Projection};
use crate::parameters::{Parameter, Parameters, Trained, is_of_head};

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
    let (mut tuned, names) = (decoder.clone(), decoder.config().names);
    let trained = tuned.trained_mut(Trained::Adapters);
    // What the base model lacks: a head, and with some families what it reads.
    let (own, trained): (Vec<_>, Vec<_>) = trained
        .into_iter()
        .filter(|tensor| InFull::marks(&tensor.name) || is_of_head(&tensor.name))
        .map(|tensor| (names.in_file(&InFull::base_name(&tensor.name)).into_owned(), tensor))
        .partition(|(name, _)| is_of_head(name) || !checkpoint.names().any(|stored| is_named(name, stored)));
    // A table whose ends were changed apart becomes two.
    let parted = names.output_weight().filter(|_| is_parted(decoder));
    let unused = |name: &str| {
        is_of_head(name) || names.unused.iter().any(|start| name.starts_with(start)) || parted.as_deref() == Some(name)
    };
    let entry = |name: &str, shape: &[usize]| Entry { name: name.to_owned(), shape: shape.to_vec(), dtype: Dtype::F32 };
    let entries: Vec<Entry> = checkpoint
        .names()
        .filter(|name| !unused(name))
        .filter_map(|name| Some(entry(name, checkpoint.shape(name)?)))
        .chain(own.iter().map(|(name, tensor)| entry(name, &tensor.stored_shape())))
        .chain(parted.iter().map(|name| entry(name, &[decoder.config().vocab_size, decoder.config().hidden_size])))
        .collect();
    let own: HashMap<String, Parameter<'_>> = own.into_iter().collect();
    let in_full: HashMap<String, Parameter<'_>> = trained.into_iter().collect();
    let table = names.in_file(&format!("{}.weight", names.embeddings)).into_owned();
    let mut done = 0;
    let size = write_folder(folder, &entries, SHARD_BYTES, |entry| {
        let in_full = in_full.iter().find(|(name, _)| is_named(name, &entry.name)).map(|(_, tensor)| tensor);
        let mut weight = match own.get(&entry.name).or(in_full) {
            Some(tensor) => tensor.stored_values(),
            None if parted.as_ref() == Some(&entry.name) => {
                let table = checkpoint.names().find(|stored| is_named(&table, stored)).unwrap_or(&table);
                checkpoint.read_f32(table, &entry.shape)?
            }
            None => checkpoint.read_f32(&entry.name, &entry.shape)?,
        };
        if let Some(change) = change_of_table(decoder, &entry.name) {
            let change: Vec<f32> = change.into_data().try_into_vec().expect("adapters are f32");
            weight.iter_mut().zip(change).for_each(|(weight, change)| *weight += change);
        }
        // Without a table for both ends, no version of transformers scales the logits; so the matrix does.
        if parted.as_ref() == Some(&entry.name) {
            weight.iter_mut().for_each(|weight| *weight *= decoder.config().output_scale);
        }
        if let Some(projection) = adapted(decoder, &entry.name) {
            merge(projection, &mut weight);
        }
        done += 1;
        progress(done, entries.len() as u64);
        Ok(weight)
    })?;
    let mut config = with_classifier(&in_float32(checkpoint.config()), decoder);
    if parted.is_some() {
        config["tie_word_embeddings"] = false.into();
        config.as_object_mut().and_then(|config| config.remove("scale_decoder_outputs"));
    }
    let text = format!("{config:#}\n");
    fs::write(folder.join("config.json"), &text).map_err(cannot_write)?;
    Ok(size + text.len() as u64)
}

/// Whether the model's one table for both ends has an adapter at one of them, or two.
fn is_parted(decoder: &Decoder) -> bool {
    let of_tokens = decoder.token_table().is_some_and(|table| table.lora.is_some());
    decoder.config().tied_embeddings && decoder.classifier().is_none() && (of_tokens || decoder.head_lora().is_some())
}

/// What the adapter of a table with this name changes in it, `[vocabulary, features]`.
fn change_of_table(decoder: &Decoder, weight_name: &str) -> Option<Tensor<2>> {
    let (module, names) = (weight_name.strip_suffix(".weight")?, decoder.config().names);
    let table = decoder.token_table().filter(|table| is_named(&names.in_file(table.module), module));
    let of_tokens = table.and_then(|table| table.lora.as_ref()).map(TableLora::change);
    let of_output = || {
        let lora = decoder.head_lora().filter(|_| names.output == Some(module))?;
        Some(lora.b.clone().matmul(lora.a.clone()) * lora.scale)
    };
    of_tokens.or_else(of_output)
}

/// The layer with this weight, where it has an adapter.
fn adapted<'a>(decoder: &'a Decoder, weight_name: &str) -> Option<&'a Projection> {
    let (layer, names) = (weight_name.strip_suffix(".weight")?, decoder.config().names);
    decoder
        .projections()
        .find(|projection| projection.lora.is_some() && is_named(&names.in_file(&projection.name), layer))
}

/// A file of the bare model lacks the first part of each name.
fn is_named(name: &str, stored: &str) -> bool {
    name == stored || name.split_once('.').is_some_and(|(_, bare)| bare == stored)
}

/// Folds what the layer's adapter has learnt into its weight, which lies in the order that it is stored in.
fn merge(projection: &Projection, weight: &mut [f32]) {
    let Some(lora) = &projection.lora else { return };
    let [outputs, inputs] = projection.shape();
    let made = |a: &Tensor<2>, b: &Tensor<2>| b.clone().matmul(a.clone());
    let [a, b] = lora.all();
    let change = match &lora.start {
        None => made(&a, &b),
        Some(start) => made(&a, &b) - made(&start.a, &start.b),
    };
    let update = change * lora.scale;
    let update: Vec<f32> = update.into_data().try_into_vec().expect("adapters are f32");
    let place = |row: usize, column: usize| match projection.transposed {
        false => row * inputs + column,
        true => column * outputs + row,
    };
    let magnitudes: Option<Vec<f32>> =
        lora.dora.as_ref().map(|dora| dora.magnitude.clone().into_data().try_into_vec().expect("adapters are f32"));
    for row in 0..outputs {
        let mut square = 0.0;
        for column in 0..inputs {
            let weight = &mut weight[place(row, column)];
            *weight += update[row * inputs + column];
            square += f64::from(*weight) * f64::from(*weight);
        }
        let Some(magnitudes) = &magnitudes else { continue };
        let factor = (f64::from(magnitudes[row]) / square.sqrt().max(f64::MIN_POSITIVE)) as f32;
        for column in 0..inputs {
            weight[place(row, column)] *= factor;
        }
    }
}
