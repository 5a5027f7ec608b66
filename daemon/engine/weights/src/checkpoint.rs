//! A model on disk, seen as a Hugging Face checkpoint: `config.json`'s keys and tensors by Hugging Face names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use crate::gguf::{Gguf, architecture};
use crate::mapped;
use crate::safetensors::SafetensorsFile;

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
        /// Hugging Face name → the file's own name.
        names: BTreeMap<String, String>,
    },
    Folder {
        folder: PathBuf,
        files: Vec<SafetensorsFile>,
        /// Tensor name → index into `files`.
        names: BTreeMap<String, usize>,
    },
}

impl Checkpoint {
    /// `path` is a GGUF file, a folder with a single one, or a folder with `config.json` and safetensors.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        if !path.is_dir() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").is_file() {
            return Self::open_folder(path);
        }
        let ggufs: Vec<PathBuf> = fs::read_dir(path)
            .map_err(|error| mapped::cannot_read(path, &error))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| file.extension().is_some_and(|extension| extension == "gguf"))
            .collect();
        match ggufs.as_slice() {
            [gguf] => Self::open_gguf(gguf),
            _ => Err(Problem::error(ProblemCode::FileFormat, "this folder holds no model", "该文件夹中没有模型")
                .file(path.display())
                .found(format!("{} GGUF files and no config.json", ggufs.len()))
                .expected("config.json with *.safetensors, or exactly one .gguf file")
                .fix("name the .gguf file itself", "请直接指定 .gguf 文件")),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, Problem> {
        let gguf = Gguf::open(path)?;
        let architecture = architecture::find(&gguf)?;
        let names: BTreeMap<String, String> = gguf
            .tensors()
            .iter()
            .filter_map(|tensor| Some((architecture.hugging_face_name(&tensor.name)?, tensor.name.clone())))
            .collect();
        let embeddings = gguf.tensor("token_embd.weight").ok_or_else(|| missing_tensor(path, "token_embd.weight"))?;
        let tied = !names.contains_key("lm_head.weight");
        let vocab_size = embeddings.shape.first().copied().unwrap_or(0);
        let config =
            architecture.config(gguf.metadata(), vocab_size, tied).map_err(|problem| problem.file(path.display()))?;
        Ok(Self { config, source: Source::Gguf { gguf: Box::new(gguf), names } })
    }

    fn open_folder(folder: &Path) -> Result<Self, Problem> {
        let config = read_json(&folder.join("config.json"))?;
        let index = folder.join("model.safetensors.index.json");
        let file_names: BTreeSet<String> = if index.is_file() {
            let map = read_json(&index)?;
            let shards = map["weight_map"].as_object().into_iter().flatten();
            shards.filter_map(|(_, file)| file.as_str().map(str::to_owned)).collect()
        } else {
            BTreeSet::from(["model.safetensors".to_owned()])
        };
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
            Source::Gguf { gguf, names } => Some(&gguf.tensor(names.get(name)?)?.shape),
            Source::Folder { files, names, .. } => files[*names.get(name)?].shape(name),
        }
    }

    /// Decodes a tensor, row-major. `ShapeMismatch` where it is missing or has another shape.
    pub fn read_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, Problem> {
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
        match &self.source {
            Source::Folder { files, names, .. } => files[names[name]].read_f32(name),
            Source::Gguf { gguf, names } => {
                let tensor = gguf.tensor(&names[name]).expect("names come from the tensor table");
                let mut elements = vec![0.0; expected.iter().product()];
                crate::gguf::dequantize(tensor.tensor_type, gguf.bytes(tensor), &mut elements);
                let order = architecture::find(gguf)?.row_order(name, &self.config);
                order.restore(&mut elements, expected.last().copied().unwrap_or(1));
                Ok(elements)
            }
        }
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
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
    }

    /// A tiny llama written by llama.cpp's converter rules, beside the Hugging Face folder it was made from
    /// (`scripts/golden/gguf_model.py`).
    #[test]
    fn a_gguf_and_its_folder_are_the_same_checkpoint() {
        let (gguf, folder) =
            (Checkpoint::open(&fixture("tiny.gguf")).unwrap(), Checkpoint::open(&fixture("tiny")).unwrap());
        assert_eq!(gguf.names().collect::<Vec<_>>(), folder.names().collect::<Vec<_>>());
        for name in folder.names() {
            let shape = folder.shape(name).unwrap();
            assert_eq!(gguf.read_f32(name, shape).unwrap(), folder.read_f32(name, shape).unwrap(), "{name}");
        }
        for key in ["hidden_size", "num_key_value_heads", "rms_norm_eps", "vocab_size", "tie_word_embeddings"] {
            assert_eq!(gguf.config()[key], folder.config()[key], "{key}");
        }
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
        assert_eq!((problem.found.as_deref(), problem.expected.as_deref()), (Some("mamba"), Some("llama")));
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
    fn no_cut_and_no_changed_byte_of_a_gguf_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        let whole = fs::read(fixture("tiny.gguf")).unwrap();
        for len in (1..whole.len()).step_by(97) {
            fs::write(&path, &whole[..len]).unwrap();
            let problem = Checkpoint::open(&path).unwrap_err();
            assert!(
                matches!(problem.code, ProblemCode::FileTruncated | ProblemCode::FileFormat),
                "{len} bytes: {problem}"
            );
        }
        let header = 2000.min(whole.len());
        for at in (0..header).step_by(3) {
            for byte in [0x00, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                fs::write(&path, changed).unwrap();
                // Some changes are harmless; none may panic or take more memory than the file.
                let _ = Checkpoint::open(&path);
            }
        }
    }
}
