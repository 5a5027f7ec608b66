//! Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`
//! (`docs/source/developer_guides/checkpoint.md` in PEFT).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write};
use justtrain_worker_api::{Problem, ProblemCode};

use super::lora::last_part;
use super::{Dora, LoraConfig, Start, olora, peft_config, start, tables};
use crate::classifier::{Classifier, are_unnamed, unnamed};
use crate::layers::{InFull, Lora, Projection};
use crate::parameters::{Parameter, Parameters, Trained, is_of_head};
use crate::{Decoder, Mode, WeightFormat, WeightFormats};

const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT wrote before.
const PICKLED: &str = "adapter_model.bin";
/// Our own file beside an adapter that judges: its labels, by the number of their classes.
const LABELS: &str = "labels.json";
/// In the weights' free-text header, which PEFT passes over: the form of the base model that the adapter was trained
/// on, where it is not `f32`.
const LINEAR_FORMAT: &str = "base_linear_format";
const TABLES_FORMAT: &str = "base_tables_format";

/// What PEFT's names begin with.
const PREFIX: &str = "base_model.model.";

/// What the name of a table ends with that PEFT saves as it is, beside its pair.
const BASE_TABLE: &str = ".base_layer.weight";

/// And how its pairs started, where they did not at zero.
const START: &str = "lora_start";

/// Writes the decoder's adapter into `folder`, which is made where it is missing. Returns the bytes written.
pub fn save_peft(decoder: &Decoder, config: &LoraConfig, base_model: &str, folder: &Path) -> Result<u64, Problem> {
    fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
    // Clones share the memory.
    let mut tuned = decoder.clone();
    let start = tuned.projections().find_map(|projection| projection.lora.as_ref()?.start.as_ref().map(Start::kind));
    start::save_taken(decoder, folder)?;
    let config = &start::join(&mut tuned, config);
    let config = &olora::join(&mut tuned, config);
    let tensors: BTreeMap<String, Parameter<'_>> =
        tuned.trained_mut(Trained::Adapters).into_iter().map(|tensor| (key(&tensor.name), tensor)).collect();
    let entry = |(name, tensor): (&String, &Parameter<'_>)| Entry {
        name: name.clone(),
        shape: tensor.stored_shape(),
        dtype: Dtype::F32,
    };
    let mut entries: Vec<Entry> = tensors.iter().map(entry).collect();
    // Of a table that is the output layer as well PEFT wants both.
    let table = key(&format!("{}.weight", decoder.config().names.embeddings));
    if let (Some(output), Some(tensor)) = (tied_output(decoder), tensors.get(&table)) {
        entries.push(Entry { name: output, shape: tensor.stored_shape(), dtype: Dtype::F32 });
    }
    let formats = decoder.formats();
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    for (key, format) in [(LINEAR_FORMAT, formats.linear), (TABLES_FORMAT, formats.tables)] {
        if format != WeightFormat::default() {
            metadata.insert(key.to_owned(), format.name().to_owned());
        }
    }
    if let Some(kind) = start {
        metadata.insert(START.to_owned(), kind.to_owned());
    }
    let size = write(&folder.join(WEIGHTS), &entries, &metadata, |entry| {
        let tensor = tensors.get(&entry.name).unwrap_or_else(|| &tensors[&table]);
        Ok(tensor.stored_values())
    })?;
    let mut saved: Vec<String> = saved_modules(tensors.values().map(|tensor| tensor.name.as_str()));
    saved.extend(decoder.classifier().map(|_| decoder.config().names.classifier.output.to_owned()));
    let mut config = peft_config::value(config, base_model, &targets(decoder, config), &saved, decoder.config());
    if let Some(classifier) = decoder.classifier() {
        config["task_type"] = decoder.config().names.classifier.peft_task.into();
        let path = folder.join(LABELS);
        let labels = serde_json::to_string_pretty(classifier.labels()).expect("labels are JSON");
        fs::write(&path, labels).map_err(|error| cannot_write(&path, &error))?;
    }
    let path = folder.join(peft_config::CONFIG);
    fs::write(&path, format!("{config:#}\n")).map_err(|error| cannot_write(&path, &error))?;
    Ok(size)
}

/// The file's name of the output layer, where that is the embedding table.
fn tied_output(decoder: &Decoder) -> Option<String> {
    decoder.config().names.output_weight().filter(|_| decoder.config().tied_embeddings).map(|name| key(&name))
}

/// The labels beside an adapter of so many classes; transformers' names for them where it is another tool's.
fn labels(folder: &Path, count: usize) -> Vec<String> {
    let written = fs::read_to_string(folder.join(LABELS)).ok();
    let labels = written.and_then(|text| serde_json::from_str::<Vec<String>>(&text).ok());
    labels.filter(|labels| labels.len() == count).unwrap_or_else(|| (0..count).map(unnamed).collect())
}

/// The labels of an adapter that judges.
pub(crate) fn adapter_labels(folder: &Path) -> Result<Option<Vec<String>>, Problem> {
    let file = open(folder)?;
    let head = file.names().find(|name| is_of_head(name.trim_start_matches(PREFIX)) && name.ends_with(".weight"));
    Ok(head.and_then(|name| file.shape(name)).map(|shape| labels(folder, shape[0])))
}

/// The whole names of modules that are trained in full, for PEFT takes whatever ends like a name it is given.
fn saved_modules<'a>(parameters: impl Iterator<Item = &'a str>) -> Vec<String> {
    let saved = parameters.filter(|name| InFull::marks(name));
    saved.filter_map(|name| InFull::base_name(name).strip_suffix(".weight").map(str::to_owned)).collect()
}

/// What PEFT finds the adapted layers by: the last part of a name where all layers have it that end so, else the name.
fn targets<'a>(decoder: &'a Decoder, config: &LoraConfig) -> Vec<&'a str> {
    let without = |layer: &Projection| layer.lora.is_none() && config.in_layers(&layer.name);
    let bare = |last: &str| decoder.projections().any(|layer| without(layer) && last_part(&layer.name) == last);
    let mut targets: Vec<&str> = tables::adapted(decoder).into_iter().map(last_part).collect();
    for projection in decoder.projections().filter(|projection| projection.lora.is_some()) {
        let last = last_part(&projection.name);
        let target = if bare(last) { &projection.name } else { last };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

/// How the base model was held when this adapter was trained, which is how it should be used; `f32` for adapters of
/// other tools.
pub fn base_formats(folder: &Path) -> Result<WeightFormats, Problem> {
    let file = open(folder)?;
    let format = |key| file.metadata().get(key).and_then(|name| WeightFormat::from_name(name)).unwrap_or_default();
    Ok(WeightFormats::new(format(LINEAR_FORMAT), format(TABLES_FORMAT)))
}

/// Puts a PEFT LoRA adapter on the decoder. Which layers have one is told by the tensors: each must fit a layer, and none
/// may be missing. Where the decoder has pairs of earlier stages, the file has these with the newest joined to them.
pub fn load_peft(decoder: &mut Decoder, folder: &Path) -> Result<LoraConfig, Problem> {
    let earlier = olora::earlier_ranks(decoder);
    let mut config = peft_config::read(folder, decoder.config())?;
    let file = open(folder)?;
    let device = decoder.device();
    if let Some(shape) = file.shape(&key(&decoder.config().names.classifier.weight())) {
        let (labels, own) = (labels(folder, shape[0]), decoder.classifier().map(Classifier::labels));
        let own = own.filter(|own| own.len() == labels.len() && are_unnamed(&labels)).map(<[_]>::to_vec);
        decoder.attach_classifier(own.unwrap_or(labels), 0);
    }
    for (index, projection) in (0u64..).zip(decoder.projections_mut()) {
        let (name, [outputs, inputs]) = (&projection.name, projection.shape());
        let start = key(&format!("{name}.lora_"));
        if !file.names().any(|tensor| tensor.starts_with(&start)) {
            continue;
        }
        let rank = config.rank_of(name);
        let (a, b) = (Tensor::zeros([rank, inputs], &device), Tensor::zeros([outputs, rank], &device));
        let mut lora = Lora::new(a, b, config.scale_of(name), config.dropout as f32, index);
        lora.dora = config.dora.then(|| Dora::new(&projection.weight, Tensor::zeros([outputs], &device)));
        projection.lora = Some(lora);
    }
    let has = |tensor: &str| file.shape(&key(tensor)).is_some();
    tables::attach_zeros(decoder, &config, has)?;
    decoder.train_in_full(|module, adapted| InFull {
        weight: has(&format!("{module}.weight")),
        bias: has(&format!("{module}.{}", if adapted { "base_layer.bias" } else { "bias" })),
    });
    let sizes = decoder.trained_sizes(Trained::Adapters);
    config.modules_to_save = saved_modules(sizes.iter().map(|(name, _)| name.as_str()));
    // The same numbers as the embedding table's, once more.
    let mut used: BTreeSet<String> =
        tied_output(decoder).filter(|name| file.shape(name).is_some()).into_iter().collect();
    used.extend(base_tables(decoder, &file)?);
    for mut tensor in decoder.trained_mut(Trained::Adapters) {
        let (name, shape) = (key(&tensor.name), tensor.stored_shape());
        // What judges may be new beside an adapter that was trained on words.
        let Some(found) = file.shape(&name).or_else(|| (!is_of_head(&tensor.name)).then_some(&[])) else { continue };
        if found != shape {
            return Err(mismatch(&file, &name, &format!("{found:?}"), &format!("{shape:?}")));
        }
        tensor.set_stored(file.read_f32(&name)?);
        used.insert(name);
    }
    match file.names().find(|name| !used.contains(*name)) {
        None if !used.is_empty() => {
            olora::take_apart(decoder, &earlier);
            Ok(config)
        }
        stranger => Err(mismatch(
            &file,
            "lora_A/lora_B",
            stranger.unwrap_or("no LoRA tensors"),
            "LoRA factors of this model's linear layers",
        )),
    }
}

/// The names of tables that PEFT has saved beside their pairs, which must be the decoder's own.
fn base_tables(decoder: &Decoder, file: &SafetensorsFile) -> Result<Vec<String>, Problem> {
    let mut names = Vec::new();
    for module in tables::adapted(decoder) {
        let name = key(&format!("{module}{BASE_TABLE}"));
        if file.shape(&name).is_none() {
            continue;
        }
        let of_tokens = decoder.token_table().filter(|table| table.module == module).map(|table| table.weight.clone());
        let weight = of_tokens.unwrap_or_else(|| decoder.output_layer(Mode::BASE).weight);
        let (found, shape) = (file.shape(&name).unwrap_or_default(), weight.dims());
        if found != shape || !tables::is_same_table(&weight, &file.read_f32(&name)?, &decoder.device()) {
            return Err(mismatch(
                file,
                &name,
                &format!("{found:?}"),
                &format!("{shape:?}, the base model's own table"),
            ));
        }
        names.push(name);
    }
    Ok(names)
}

/// How the pairs started that this adapter was made of, where they did not at zero.
pub(crate) fn kind_of_start(folder: &Path) -> Result<Option<String>, Problem> {
    Ok(open(folder)?.metadata().get(START).cloned())
}

/// Whether tensors of the base model are trained beside the pairs.
pub(crate) fn trains_in_full(folder: &Path) -> Result<bool, Problem> {
    let of_base = |name: &str| !name.contains(".lora_") && !name.ends_with(BASE_TABLE);
    Ok(open(folder)?.names().any(|name| of_base(name) && !is_of_head(name.trim_start_matches(PREFIX))))
}

fn open(folder: &Path) -> Result<SafetensorsFile, Problem> {
    let path = folder.join(WEIGHTS);
    if !path.exists() && folder.join(PICKLED).exists() {
        return Err(Problem::error(
            ProblemCode::FileFormat,
            "the adapter is a pickle, which can run code when it is read",
            "该适配器是 pickle 文件，读取时可能执行代码",
        )
        .file(folder.join(PICKLED).display())
        .expected(WEIGHTS)
        .fix("load it in PEFT and save it with safe_serialization", "用 PEFT 载入，再以 safe_serialization 保存"));
    }
    SafetensorsFile::open(&path)
}

/// PEFT's name of a parameter.
fn key(parameter: &str) -> String {
    let parameter = InFull::peft_name(parameter);
    let end = if parameter.ends_with(".lora_A") || parameter.ends_with(".lora_B") { ".weight" } else { "" };
    format!("{PREFIX}{parameter}{end}")
}

fn mismatch(file: &SafetensorsFile, key: &str, found: &str, expected: &str) -> Problem {
    Problem::error(ProblemCode::ShapeMismatch, "the adapter does not fit this model", "适配器与模型不匹配")
        .file(file.path().display())
        .key(key)
        .found(found)
        .expected(expected)
        .fix("use the base model that the adapter was trained on", "请使用训练该适配器时的基础模型")
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Problem {
    Problem::error(
        ProblemCode::DiskFull,
        format!("the adapter cannot be written: {error}"),
        format!("无法写入适配器：{error}"),
    )
    .file(path.display())
    .fix("free some disk space, or check the folder's permissions", "请释放磁盘空间，或检查文件夹权限")
}
