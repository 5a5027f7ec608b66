//! A model on disk, seen as a Hugging Face checkpoint: `config.json`'s keys and tensors by Hugging Face names.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use crate::gguf::architecture::{self, EACH, RowOrder};
use crate::gguf::{Blocks, Gguf, TensorInfo, blocks};
use crate::mapped;
use crate::pickle::{self, is_pickle};
use crate::safetensors::SafetensorsFile;
use crate::stored::StoredTensor;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A GGUF file or a Hugging Face folder.
#[derive(Debug)]
pub struct Checkpoint {
    config: Value,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Gguf {
        gguf: Box<Gguf>,
        names: BTreeMap<String, Place>,
    },
    Folder {
        folder: PathBuf,
        files: Vec<SafetensorsFile>,
        /// Tensor name → index into `files`.
        names: BTreeMap<String, usize>,
    },
}

/// Where a weight lies in a GGUF.
#[derive(Debug)]
struct Place {
    /// The file's own name of the tensor.
    tensor: String,
    /// The weight's number, where several lie in the tensor, along its first dimension.
    part: Option<usize>,
    /// In Hugging Face's order of dimensions.
    shape: Vec<usize>,
    /// The file has rows and columns exchanged.
    transposed: bool,
}

impl Place {
    /// Every weight of a tensor, by its Hugging Face name.
    fn all(tensor: &TensorInfo, hugging_face_name: String, transposed: bool) -> Vec<(String, Self)> {
        let place = |part: Option<usize>| {
            let mut shape = tensor.shape[usize::from(part.is_some())..].to_vec();
            let transposed = transposed && shape.len() == 2;
            if transposed {
                shape.reverse();
            }
            Self { tensor: tensor.name.clone(), part, shape, transposed }
        };
        // A number that the tensor's bytes cannot bear out gets no names, so that the tensor is taken for a stranger.
        let parts = |count: &usize| (1..=tensor.range.len()).contains(count);
        match (hugging_face_name.split_once(EACH), tensor.shape.as_slice()) {
            (None, _) => vec![(hugging_face_name, place(None))],
            (Some((start, end)), [count, _, _]) if parts(count) => {
                (0..*count).map(|part| (format!("{start}{part}{end}"), place(Some(part)))).collect()
            }
            (Some(_), _) => vec![(tensor.name.clone(), place(None))],
        }
    }
}

impl Checkpoint {
    /// `path` is a GGUF file, a folder with a single one, or a folder with `config.json` and safetensors.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        if !path.is_dir() {
            return match path.is_file() && is_pickle(path) {
                true => Err(pickle::refused(path, &[path.to_owned()])),
                false => Self::open_gguf(path),
            };
        }
        // Some folders carry the original model's config.json beside a GGUF.
        if path.join("config.json").is_file() && (path.join(INDEX).is_file() || path.join(SINGLE).is_file()) {
            return Self::open_folder(path);
        }
        let mut files: Vec<PathBuf> = fs::read_dir(path)
            .map_err(|error| mapped::cannot_read(path, &error))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        files.sort();
        let pickles: Vec<PathBuf> = files.iter().filter(|file| is_pickle(file)).cloned().collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "gguf"));
        match files.as_slice() {
            [gguf] => Self::open_gguf(gguf),
            [] if !pickles.is_empty() => Err(pickle::refused(path, &pickles)),
            [] if path.join("config.json").is_file() => Err(Problem::error(
                ProblemCode::FileNotFound,
                "this folder has a configuration and no weights",
                "该文件夹中有配置，但没有权重",
            )
            .file(path.display())
            .found("config.json alone")
            .expected(format!("{SINGLE}, or {INDEX} with its shards"))
            .fix("download the model again", "请重新下载模型")),
            _ => Err(Problem::error(ProblemCode::FileFormat, "this folder holds no model", "该文件夹中没有模型")
                .file(path.display())
                .found(format!("{} GGUF files and no safetensors", files.len()))
                .expected(format!("config.json with {SINGLE}, or exactly one .gguf file"))
                .fix("name the .gguf file itself", "请直接指定 .gguf 文件")),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, Problem> {
        let gguf = Gguf::open(path)?;
        refuse_split(&gguf)?;
        let architecture = architecture::find(&gguf)?;
        let names: BTreeMap<String, Place> = gguf
            .tensors()
            .iter()
            .filter_map(|tensor| {
                let name = architecture.hugging_face_name(&tensor.name)?;
                let transposed = architecture.is_transposed(&name);
                Some(Place::all(tensor, name, transposed))
            })
            .flatten()
            .collect();
        let config = architecture.config(&gguf).map_err(|problem| problem.file(path.display()))?;
        Ok(Self { config, source: Source::Gguf { gguf: Box::new(gguf), names } })
    }

    fn open_folder(folder: &Path) -> Result<Self, Problem> {
        let config = read_json(&folder.join("config.json"))?;
        // As in transformers, a single file wins: an index beside it was left there by another version of the model.
        let single = folder.join(SINGLE).is_file();
        let file_names = if single { BTreeSet::from([SINGLE.to_owned()]) } else { shard_names(&folder.join(INDEX))? };
        let files =
            file_names.iter().map(|name| SafetensorsFile::open(&folder.join(name))).collect::<Result<Vec<_>, _>>()?;
        let names = files
            .iter()
            .enumerate()
            .flat_map(|(index, file)| file.names().map(move |name| (name.to_owned(), index)))
            .collect();
        Ok(Self { config, source: Source::Folder { folder: folder.to_owned(), files, names } })
    }

    /// The keys of Hugging Face's `config.json`, also where the file is a GGUF.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        match &self.source {
            Source::Gguf { gguf, .. } => gguf.path(),
            Source::Folder { folder, .. } => folder,
        }
    }

    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf { gguf, .. } => Some(gguf),
            Source::Folder { .. } => None,
        }
    }

    pub fn folder(&self) -> Option<&Path> {
        match &self.source {
            Source::Gguf { .. } => None,
            Source::Folder { folder, .. } => Some(folder),
        }
    }

    /// Hugging Face names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        match &self.source {
            Source::Gguf { names, .. } => Box::new(names.keys().map(String::as_str)) as Box<dyn Iterator<Item = &str>>,
            Source::Folder { names, .. } => Box::new(names.keys().map(String::as_str)),
        }
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.source {
            Source::Gguf { names, .. } => Some(&names.get(name)?.shape),
            Source::Folder { files, names, .. } => files[*names.get(name)?].shape(name),
        }
    }

    /// What all tensors take in the files.
    pub fn bytes(&self) -> u64 {
        let bytes = match &self.source {
            Source::Gguf { gguf, .. } => gguf.tensors().iter().map(|tensor| gguf.bytes(tensor).len()).sum::<usize>(),
            Source::Folder { files, names, .. } => {
                names.iter().filter_map(|(name, &file)| files[file].bytes(name)).map(<[u8]>::len).sum()
            }
        };
        bytes as u64
    }

    /// Decodes a tensor, row-major. `ShapeMismatch` where it is missing or has another shape.
    pub fn read_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, Problem> {
        Ok(self.tensor(name, expected)?.read())
    }

    /// A tensor to be read in parts; fails as [`read_f32`](Self::read_f32).
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<StoredTensor<'_>, Problem> {
        let found = self.shape(name).ok_or_else(|| missing_tensor(self.path(), name))?;
        if found != expected {
            return Err(Problem::error(
                ProblemCode::ShapeMismatch,
                format!("tensor {name} does not have the shape that the model's configuration gives it"),
                format!("张量 {name} 的形状与模型配置不符"),
            )
            .file(self.path().display())
            .found(format!("{found:?}"))
            .expected(format!("{expected:?}"))
            .fix("download the model again", "请重新下载模型"));
        }
        Ok(match &self.source {
            Source::Folder { files, names, .. } => StoredTensor::plain(found, files[names[name]].elements(name)?),
            Source::Gguf { gguf, names } => {
                let tensor = gguf.tensor(&names[name].tensor).expect("names come from the tensor table");
                let blocks = self.blocks(name)?.expect("a GGUF file holds blocks");
                let one_more = name.ends_with("norm.weight") && architecture::find(gguf)?.norms_hold_one_more();
                let stored = StoredTensor::blocks(found, blocks, gguf, tensor, if one_more { 1.0 } else { 0.0 });
                if names[name].transposed { stored.transposed() } else { stored }
            }
        })
    }

    /// A GGUF file's tensor, still encoded, and rows and columns as in the file; None in a folder. `ShapeMismatch` where it is missing.
    pub fn blocks(&self, name: &str) -> Result<Option<Blocks<'_>>, Problem> {
        let Source::Gguf { gguf, names } = &self.source else { return Ok(None) };
        let stored = names.get(name).ok_or_else(|| missing_tensor(gguf.path(), name))?;
        let tensor = gguf.tensor(&stored.tensor).expect("names come from the tensor table");
        if let (Some(part), [count, ..]) = (stored.part, tensor.shape.as_slice()) {
            return Ok(Some(Blocks::part(tensor, gguf.bytes(tensor), part, *count)));
        }
        let order = architecture::find(gguf)?.row_order(name, &self.config);
        if order == RowOrder::AsStored {
            return Ok(Some(Blocks::new(tensor, Cow::Borrowed(gguf.bytes(tensor)))));
        }
        let rows = tensor.shape.iter().product::<usize>().checked_div(blocks::row_len(tensor)).unwrap_or(0);
        if !order.fits(rows) {
            return Err(Problem::error(
                ProblemCode::ShapeMismatch,
                format!("the rows of tensor {name} are not whole attention heads"),
                format!("张量 {name} 的行数不是注意力头数的整数倍"),
            )
            .file(gguf.path().display())
            .found(format!("{rows} rows"))
            .expected(format!("a multiple of {}, twice the number of heads", order.divisor()))
            .fix("download the model again", "请重新下载模型"));
        }
        let mut bytes = gguf.bytes(tensor).to_vec();
        order.restore(&mut bytes, rows);
        Ok(Some(Blocks::new(tensor, Cow::Owned(bytes))))
    }
}

/// The files that an index names. They lie beside it: a name with a folder in it is refused.
fn shard_names(index: &Path) -> Result<BTreeSet<String>, Problem> {
    let refused = |found: &Value| {
        Problem::error(ProblemCode::FileFormat, "this is not an index of safetensors", "这不是 safetensors 索引")
            .file(index.display())
            .key("weight_map")
            .found(found)
            .expected("the name of a file beside the index for every tensor")
            .fix("download the model again", "请重新下载模型")
    };
    let json = read_json(index)?;
    let map =
        json["weight_map"].as_object().filter(|map| !map.is_empty()).ok_or_else(|| refused(&json["weight_map"]))?;
    map.values()
        .map(|file| {
            let name = file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|last| last == *name));
            name.map(str::to_owned).ok_or_else(|| refused(file))
        })
        .collect()
}

/// One part of a model that llama.cpp has split holds neither all tensors nor, but for the first, the metadata.
fn refuse_split(gguf: &Gguf) -> Result<(), Problem> {
    match gguf.metadata().get_u32("split.count") {
        Some(parts) if parts > 1 => {
            Err(Problem::error(ProblemCode::FileFormat, "this is one part of a split model", "这只是拆分模型的一部分")
                .file(gguf.path().display())
                .key("split.count")
                .found(parts)
                .expected("a model in one file")
                .fix("join the parts with llama-gguf-split --merge", "请用 llama-gguf-split --merge 合并各部分"))
        }
        _ => Ok(()),
    }
}

fn read_json(path: &Path) -> Result<Value, Problem> {
    let text = fs::read_to_string(path).map_err(|error| mapped::cannot_read(path, &error))?;
    serde_json::from_str(&text).map_err(|error| {
        Problem::error(ProblemCode::Syntax, "this is not JSON", "这不是合法的 JSON")
            .file(path.display())
            .at(error.line() as u64, error.column() as u64)
            .found(error)
    })
}

pub(crate) fn missing_tensor(path: &Path, name: &str) -> Problem {
    Problem::error(
        ProblemCode::ShapeMismatch,
        format!("the model lacks the tensor {name}"),
        format!("模型缺少张量 {name}"),
    )
    .file(path.display())
    .found("no such tensor")
    .expected(name)
    .fix("download the model again", "请重新下载模型")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
    }

    /// A tiny llama written by llama.cpp's converter rules, beside the Hugging Face folder it was made from
    /// (`scripts/golden/gguf_blocks.py`).
    #[test]
    fn a_gguf_and_its_folder_are_the_same_checkpoint() {
        let (gguf, folder) =
            (Checkpoint::open(&fixture("tiny.gguf")).unwrap(), Checkpoint::open(&fixture("tiny")).unwrap());
        assert_eq!(gguf.names().collect::<Vec<_>>(), folder.names().collect::<Vec<_>>());
        for name in folder.names() {
            let shape = folder.shape(name).unwrap();
            let expected = folder.read_f32(name, shape).unwrap();
            assert_eq!(gguf.read_f32(name, shape).unwrap(), expected, "{name}");
            // The same in parts, which begin and end inside attention heads.
            let cols: usize = shape[1..].iter().product();
            for checkpoint in [&gguf, &folder] {
                let tensor = checkpoint.tensor(name, shape).unwrap();
                let mut parts = vec![f32::NAN; expected.len()];
                for (index, part) in parts.chunks_mut(3 * cols).enumerate() {
                    tensor.read_rows(index * 3..index * 3 + part.len() / cols, part);
                }
                assert_eq!(parts, expected, "{name}");
            }
        }
        for key in ["hidden_size", "num_key_value_heads", "rms_norm_eps", "vocab_size", "tie_word_embeddings"] {
            assert_eq!(gguf.config()[key], folder.config()[key], "{key}");
        }
    }

    #[test]
    fn some_rows_are_the_same_as_in_the_whole() {
        let checkpoint = Checkpoint::open(&fixture("tiny.gguf")).unwrap();
        for name in checkpoint.names() {
            let whole = checkpoint.read_f32(name, checkpoint.shape(name).unwrap()).unwrap();
            let blocks = checkpoint.blocks(name).unwrap().unwrap();
            assert_eq!(blocks.rows() * blocks.row_len(), whole.len(), "{name}");
            let mut rows = vec![0.0; 3 * blocks.row_len()];
            blocks.decode_rows(2..5, &mut rows);
            assert_eq!(rows, whole[2 * blocks.row_len()..5 * blocks.row_len()], "{name}");
        }
        assert!(Checkpoint::open(&fixture("tiny")).unwrap().blocks("model.norm.weight").unwrap().is_none());
        assert_eq!(checkpoint.blocks("nothing").unwrap_err().code, ProblemCode::ShapeMismatch);
    }

    #[test]
    fn a_wrong_shape_names_tensor_found_and_expected() {
        let checkpoint = Checkpoint::open(&fixture("tiny.gguf")).unwrap();
        let problem = checkpoint.read_f32("model.norm.weight", &[7]).unwrap_err();
        assert_eq!(problem.code, ProblemCode::ShapeMismatch);
        assert!(problem.message.en.contains("model.norm.weight"));
        assert_eq!(problem.expected.as_deref(), Some("[7]"));
        assert!(problem.found.unwrap().starts_with('['));
    }

    #[test]
    fn an_unknown_architecture_names_those_that_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        let bytes = fs::read(fixture("tiny.gguf")).unwrap();
        let at = bytes.windows(5).position(|window| window == b"llama").unwrap();
        let mut changed = bytes;
        changed[at..at + 5].copy_from_slice(b"mamba");
        fs::write(&path, changed).unwrap();
        let problem = Checkpoint::open(&path).unwrap_err();
        assert_eq!(problem.code, ProblemCode::UnknownArchitecture);
        assert_eq!(
            (problem.found.as_deref(), problem.expected.as_deref()),
            (Some("mamba"), Some("llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3, gpt2"))
        );
    }

    #[test]
    fn what_is_not_a_model_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        assert_eq!(Checkpoint::open(&path).unwrap_err().code, ProblemCode::FileNotFound);
        fs::write(&path, "").unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap_err().code, ProblemCode::FileEmpty);
        fs::write(&path, "hello, world").unwrap();
        let problem = Checkpoint::open(&path).unwrap_err();
        assert_eq!(problem.code, ProblemCode::FileFormat);
        assert!(problem.found.unwrap().contains("hell"));
    }

    #[test]
    fn an_index_reaches_only_files_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        for (index, named) in [
            (r#"{"weight_map": {"a": "../other/model.safetensors"}}"#, "../other"),
            (r#"{"weight_map": {"a": 3}}"#, "3"),
            (r#"{"weights": {}}"#, "null"),
        ] {
            fs::write(folder.path().join(INDEX), index).unwrap();
            let problem = Checkpoint::open(folder.path()).unwrap_err();
            assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::FileFormat, Some("weight_map")));
            assert!(problem.found.unwrap().contains(named), "{index}");
        }
    }

    #[test]
    fn an_index_that_was_left_beside_a_single_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", SINGLE] {
            fs::copy(fixture("tiny").join(file), folder.path().join(file)).unwrap();
        }
        fs::write(folder.path().join(INDEX), r#"{"weight_map": {"old.weight": "model-00001-of-00002.safetensors"}}"#)
            .unwrap();
        let (opened, whole) = (Checkpoint::open(folder.path()).unwrap(), Checkpoint::open(&fixture("tiny")).unwrap());
        assert_eq!(opened.names().collect::<Vec<_>>(), whole.names().collect::<Vec<_>>());
    }

    #[test]
    fn pickles_are_refused_with_the_way_out_and_never_read() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("pytorch_model.bin");
        for (name, text) in [("config.json", "{}"), ("pytorch_model.bin", "GGUF"), ("optimizer.pt", "")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        for (path, found) in [(folder.path(), "optimizer.pt, pytorch_model.bin"), (&weights, "pytorch_model.bin")] {
            let problem = Checkpoint::open(path).unwrap_err();
            assert_eq!((problem.code, problem.found.as_deref()), (ProblemCode::FileFormat, Some(found)));
            assert!(
                problem.fix.en.contains("save_pretrained") && problem.fix.zh.contains("save_pretrained"),
                "{problem}"
            );
        }
        fs::copy(fixture("tiny.gguf"), folder.path().join("x.gguf")).unwrap();
        assert!(Checkpoint::open(folder.path()).is_ok());
    }

    #[test]
    fn a_folder_may_hold_a_gguf() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::open(folder.path()).unwrap_err().code, ProblemCode::FileFormat);
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let problem = Checkpoint::open(folder.path()).unwrap_err();
        assert_eq!(problem.code, ProblemCode::FileNotFound);
        assert!(problem.expected.unwrap().contains(SINGLE));
        fs::copy(fixture("tiny.gguf"), folder.path().join("model.gguf")).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert!(checkpoint.gguf().is_some());
        assert_eq!(checkpoint.config()["model_type"], "llama");
    }

    /// Head counts that cannot be: the file opens and its tensors are refused.
    #[test]
    fn rows_that_are_no_whole_heads_are_refused() {
        let mut bytes = fs::read(fixture("tiny.gguf")).unwrap();
        let key = b"llama.attention.head_count";
        let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        for heads in [0u32, 5, u32::MAX] {
            bytes[at..at + 4].copy_from_slice(&heads.to_le_bytes());
            fs::write(&path, &bytes).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let problem = checkpoint.read_f32("model.layers.0.self_attn.q_proj.weight", &[16, 16]).unwrap_err();
            assert_eq!(problem.code, ProblemCode::ShapeMismatch);
            assert!(problem.message.en.contains("q_proj"));
        }
    }

    /// Opens `bytes` as a GGUF and decodes whatever it claims to hold.
    fn read_all(bytes: &[u8]) -> Result<(), Problem> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        fs::write(&path, bytes).unwrap();
        let checkpoint = Checkpoint::open(&path)?;
        for name in checkpoint.names() {
            checkpoint.read_f32(name, checkpoint.shape(name).unwrap())?;
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn every_cut_of_a_gguf_is_noticed(cut in 1..10_240usize) {
            let whole = fs::read(fixture("tiny.gguf")).unwrap();
            let problem = read_all(&whole[..whole.len() - cut.min(whole.len() - 1)]).unwrap_err();
            prop_assert!(matches!(problem.code, ProblemCode::FileTruncated | ProblemCode::FileFormat), "{}", problem);
        }

        /// Some changes are harmless; none may panic or take more memory than the file justifies.
        #[test]
        fn no_changed_header_panics(changes in prop::collection::vec((0..2000usize, any::<u8>()), 1..8)) {
            let mut bytes = fs::read(fixture("tiny.gguf")).unwrap();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let _ = read_all(&bytes);
        }

        /// As above with eight bytes at once, which makes lengths, counts and offsets huge.
        #[test]
        fn no_huge_length_panics(at in 0..2000usize, length in any::<u64>(), shift in 0..64u32) {
            let mut bytes = fs::read(fixture("tiny.gguf")).unwrap();
            bytes[at..at + 8].copy_from_slice(&(length >> shift).to_le_bytes());
            let _ = read_all(&bytes);
        }
    }
}
