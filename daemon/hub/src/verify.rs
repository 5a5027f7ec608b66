//! Reading a stored model again and comparing it with the hashes it came with.

use std::fs;
use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};

use crate::disk::io_problem;
use crate::download::wrong_hash;
use crate::hash::{Digest, Hashed};
use crate::store::{ModelFormat, StoredFile, StoredModel};
use crate::{Hub, SourceKind};

/// One file of a model, read and compared.
#[derive(Debug, Clone)]
pub struct VerifiedFile {
    pub path: String,
    pub size: u64,
    /// What is wrong with it.
    pub problem: Option<Problem>,
}

impl Hub {
    /// Reads every file of a model. Blocks for as long as the disk takes; `report` gets each file when it is known, and
    /// ends the reading by returning false.
    ///
    /// A damaged file of our own store is discarded, so that the next pull fetches it again, and nothing else.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub fn verify(&self, wanted: &str, mut report: impl FnMut(VerifiedFile) -> bool) -> Result<(), Problem> {
        let model = self.get(wanted)?;
        let folder = match model.format {
            ModelFormat::Gguf => model.path.parent().unwrap_or(&model.path),
            ModelFormat::Safetensors => &model.path,
        };
        for file in &model.files {
            let problem = check(&model, folder, file).err();
            if !report(VerifiedFile { path: file.path.clone(), size: file.size, problem }) {
                break;
            }
        }
        Ok(())
    }
}

fn check(model: &StoredModel, folder: &Path, file: &StoredFile) -> Result<(), Problem> {
    let path = folder.join(&file.path);
    let digest = if file.sha256.is_empty() { Digest::parse(file.blob()) } else { Digest::parse(&file.sha256) };
    let Some(digest) = digest else {
        return Err(Problem::warning(
            ProblemCode::ChecksumMismatch,
            "there is no hash to compare it with",
            "没有可比对的哈希值",
        )
        .file(path.display()));
    };
    let hashed = Hashed::of(&path, |_| Ok(())).map_err(|error| io_problem(&path, &error))?;
    if hashed.is(&digest) {
        return Ok(());
    }
    let problem = wrong_hash(&path.display().to_string(), &hashed.like(&digest), &digest);
    if model.source == SourceKind::Cache {
        return Err(problem.fix(
            "this file belongs to Hugging Face's own cache: remove the model there with `hf cache rm`, then fetch it again",
            "该文件属于 Hugging Face 的缓存：请用 `hf cache rm` 删除后重新下载",
        ));
    }
    if let Ok(blob) = fs::canonicalize(&path) {
        fs::remove_file(&blob).map_err(|error| io_problem(&blob, &error))?;
    }
    Err(problem.fix(
        format!("the damaged file was discarded; fetch it again: `justtrain models pull {}`", model.name),
        format!("损坏的文件已删除，请重新获取：`justtrain models pull {}`", model.name),
    ))
}
