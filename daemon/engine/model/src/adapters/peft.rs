//! Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`
//! (`docs/source/developer_guides/checkpoint.md` in PEFT).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write};
use justtrain_worker_api::{Problem, ProblemCode};

use super::lora::last_part;
use super::{LoraConfig, peft_config};
use crate::layers::Lora;
use crate::{Decoder, WeightFormat, WeightFormats};

const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT wrote before.
const PICKLED: &str = "adapter_model.bin";
/// In the weights' free-text header, which PEFT passes over: the form of the base model that the adapter was trained
/// on, where it is not `f32`.
const LINEAR_FORMAT: &str = "base_linear_format";
const TABLES_FORMAT: &str = "base_tables_format";

/// Writes the decoder's adapter into `folder`, which is made where it is missing. Returns the bytes written.
pub fn save_peft(decoder: &Decoder, config: &LoraConfig, base_model: &str, folder: &Path) -> Result<u64, Problem> {
    fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
    let mut tensors: BTreeMap<String, Tensor<2>> = BTreeMap::new();
    for projection in decoder.projections() {
        let Some(lora) = &projection.lora else { continue };
        tensors.insert(key(&projection.name, "A"), lora.a.clone());
        tensors.insert(key(&projection.name, "B"), lora.b.clone());
    }
    let entries: Vec<Entry> = tensors
        .iter()
        .map(|(name, tensor)| Entry { name: name.clone(), shape: tensor.dims().to_vec(), dtype: Dtype::F32 })
        .collect();
    let formats = decoder.formats();
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    for (key, format) in [(LINEAR_FORMAT, formats.linear), (TABLES_FORMAT, formats.tables)] {
        if format != WeightFormat::default() {
            metadata.insert(key.to_owned(), format.name().to_owned());
        }
    }
    let size = write(&folder.join(WEIGHTS), &entries, &metadata, |entry| {
        Ok(tensors[&entry.name].clone().into_data().try_into_vec().expect("adapters are f32"))
    })?;
    let config = peft_config::value(config, base_model, &targets(decoder), decoder.config().names.transposed);
    let path = folder.join(peft_config::CONFIG);
    fs::write(&path, format!("{config:#}\n")).map_err(|error| cannot_write(&path, &error))?;
    Ok(size)
}

/// What PEFT finds the adapted layers by: the last part of a name where all layers have it that end so, else the name.
fn targets(decoder: &Decoder) -> Vec<&str> {
    let bare = |last: &str| decoder.projections().any(|layer| layer.lora.is_none() && last_part(&layer.name) == last);
    let mut targets: Vec<&str> = Vec::new();
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
    let file = SafetensorsFile::open(&folder.join(WEIGHTS))?;
    let format = |key| file.metadata().get(key).and_then(|name| WeightFormat::from_name(name)).unwrap_or_default();
    Ok(WeightFormats { linear: format(LINEAR_FORMAT), tables: format(TABLES_FORMAT) })
}

/// Puts a PEFT LoRA adapter on the decoder. Every tensor of the file must fit a layer, and no layer may have half of
/// one. Which layers have one is told by the tensors.
pub fn load_peft(decoder: &mut Decoder, folder: &Path) -> Result<LoraConfig, Problem> {
    let config = peft_config::read(folder, decoder.config().names.transposed)?;
    let file = open(folder)?;
    let device = decoder.device();
    let mut used = 0;
    for (index, projection) in (0u64..).zip(decoder.projections_mut()) {
        let names = [key(&projection.name, "A"), key(&projection.name, "B")];
        if names.iter().all(|name| file.shape(name).is_none()) {
            continue;
        }
        let [outputs, inputs] = projection.shape();
        let read = |name: &str, shape: [usize; 2]| {
            let found = file.shape(name).unwrap_or_default();
            if found != shape {
                return Err(mismatch(&file, name, &format!("{found:?}"), &format!("{shape:?}")));
            }
            Ok(Tensor::from_data(TensorData::new(file.read_f32(name)?, shape), &device))
        };
        let rank = config.rank_of(&projection.name);
        let (a, b) = (read(&names[0], [rank, inputs])?, read(&names[1], [outputs, rank])?);
        let scale = config.scale_of(&projection.name);
        projection.lora = Some(Lora { a, b, scale, dropout: config.dropout as f32, index });
        used += 2;
    }
    if used != file.names().count() || used == 0 {
        let layers: Vec<String> = decoder.projections().map(|p| key(&p.name, "")).collect();
        let stranger = file.names().find(|name| !layers.iter().any(|layer| name.starts_with(layer.as_str())));
        let found = stranger.unwrap_or("no LoRA tensors");
        return Err(mismatch(&file, "lora_A/lora_B", found, "LoRA factors of this model's linear layers"));
    }
    Ok(config)
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

/// `base_model.model.<layer>.lora_A.weight`; with no factor, what both names start with.
fn key(layer: &str, factor: &str) -> String {
    match factor {
        "" => format!("base_model.model.{layer}.lora_"),
        factor => format!("base_model.model.{layer}.lora_{factor}.weight"),
    }
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
