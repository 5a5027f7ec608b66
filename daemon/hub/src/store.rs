//! The models on this disk, in the layout of the Hugging Face cache.
//!
//! ```text
//! models--ORG--NAME/
//!   justtrain.json              where it came from; written last, so a folder without it is not a model yet
//!   blobs/SHA256                the bytes, once
//!   blobs/KEY.incomplete        a download that goes on at the next try
//!   refs/main                   REVISION
//!   snapshots/REVISION/FILE     links to ../../blobs/SHA256
//! ```
//!
//! One difference: small files too are named by their SHA-256, where the hub's own tools use a git hash. Readers go
//! through `refs` and `snapshots` and do not see it.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use justtrain_worker_api::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{io_problem, rename_durably, sync_folder, write_durably};
use crate::hash::hex;
use crate::{ModelName, SourceKind};

const SIDECAR: &str = "justtrain.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelFormat {
    /// One file that is a whole model.
    Gguf,
    /// A Hugging Face folder.
    Safetensors,
}

/// A model that is whole and on this disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredModel {
    /// `ORG--NAME`.
    pub id: String,
    pub name: ModelName,
    /// The GGUF file, or the snapshot folder.
    pub path: PathBuf,
    pub format: ModelFormat,
    pub size_bytes: u64,
    pub source: SourceKind,
    /// A commit of the repository, or what stands for one where there is no repository.
    pub revision: String,
    /// SPDX identifier, where the source tells.
    pub license: Option<String>,
    /// SHA-256 of the weights file; of the list of files where there are several.
    pub sha256: String,
    /// When it was stored, in seconds since 1970.
    pub created: u64,
}

/// What a source has put into `blobs`, ready to become a model.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) name: ModelName,
    pub(crate) source: SourceKind,
    pub(crate) revision: String,
    pub(crate) license: Option<String>,
    pub(crate) files: Vec<StoredFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredFile {
    /// Relative to the snapshot, with `/` between its parts.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// The contents of `justtrain.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Sidecar {
    name: ModelName,
    format: ModelFormat,
    source: SourceKind,
    revision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    license: Option<String>,
    sha256: String,
    /// Seconds since 1970.
    created: u64,
    files: Vec<StoredFile>,
}

#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of `name`'s blobs; made when it is not there.
    pub(crate) fn blobs(&self, name: &ModelName) -> Result<PathBuf, Problem> {
        let blobs = self.root.join(name.folder()).join("blobs");
        fs::create_dir_all(&blobs).map_err(|error| io_problem(&blobs, &error))?;
        Ok(blobs)
    }

    /// Every whole model, by name. Folders that cannot be read are left out and logged.
    pub(crate) fn list(&self) -> Vec<StoredModel> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let mut models: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.path().join(SIDECAR).is_file())
            .filter_map(|entry| self.read(&entry.path()))
            .collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    pub(crate) fn get(&self, name: &ModelName) -> Option<StoredModel> {
        self.read(&self.root.join(name.folder()))
    }

    fn read(&self, folder: &Path) -> Option<StoredModel> {
        let sidecar: Sidecar = serde_json::from_slice(&fs::read(folder.join(SIDECAR)).ok()?)
            .inspect_err(|error| tracing::warn!(folder = %folder.display(), %error, "unreadable model description"))
            .ok()?;
        let snapshot = folder.join("snapshots").join(&sidecar.revision);
        let whole = sidecar
            .files
            .iter()
            .all(|file| fs::metadata(snapshot.join(&file.path)).is_ok_and(|metadata| metadata.len() == file.size));
        if !whole {
            tracing::warn!(folder = %folder.display(), "files of this model are missing or cut");
            return None;
        }
        let path = match (sidecar.format, &sidecar.files[..]) {
            (ModelFormat::Gguf, [file, ..]) => snapshot.join(&file.path),
            _ => snapshot,
        };
        Some(StoredModel {
            id: sidecar.name.id(),
            path,
            format: sidecar.format,
            size_bytes: sidecar.files.iter().map(|file| file.size).sum(),
            source: sidecar.source,
            revision: sidecar.revision,
            license: sidecar.license,
            sha256: sidecar.sha256,
            created: sidecar.created,
            name: sidecar.name,
        })
    }

    /// Makes a model of what a source has delivered, then drops what only the model's former revision used.
    pub(crate) fn publish(&self, delivery: Delivery) -> Result<StoredModel, Problem> {
        let folder = self.root.join(delivery.name.folder());
        let sidecar = Sidecar {
            format: if delivery.files.iter().any(|file| file.path.ends_with(".gguf")) {
                ModelFormat::Gguf
            } else {
                ModelFormat::Safetensors
            },
            sha256: overall_sha256(&delivery.files),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            name: delivery.name,
            source: delivery.source,
            revision: delivery.revision,
            license: delivery.license,
            files: delivery.files,
        };
        self.write_snapshot(&folder, &sidecar)?;
        drop_former(&folder, &sidecar);
        self.read(&folder).ok_or_else(|| {
            Problem::error(
                ProblemCode::Internal,
                "the model was stored and cannot be read back",
                "模型已写入，但无法读回",
            )
            .file(folder.display())
        })
    }

    fn write_snapshot(&self, folder: &Path, sidecar: &Sidecar) -> Result<(), Problem> {
        let snapshot = folder.join("snapshots").join(&sidecar.revision);
        let refs = folder.join("refs");
        for made in [&snapshot, &refs] {
            fs::create_dir_all(made).map_err(|error| io_problem(made, &error))?;
        }
        for file in &sidecar.files {
            let link = snapshot.join(safe_relative(&file.path)?);
            link_blob(folder, &link, &file.sha256).map_err(|error| io_problem(&link, &error))?;
        }
        let write = || {
            sync_folder(&snapshot)?;
            write_durably(&refs.join("main"), sidecar.revision.as_bytes())?;
            write_durably(&folder.join(SIDECAR), &serde_json::to_vec_pretty(sidecar)?)
        };
        write().map_err(|error| io_problem(folder, &error))
    }

    /// Deletes a model and its partial downloads. Returns the bytes that were freed.
    pub(crate) fn remove(&self, name: &ModelName) -> Result<u64, Problem> {
        let folder = self.root.join(name.folder());
        if !folder.is_dir() {
            return Err(self.not_found(name.as_str()));
        }
        let freed = fs::read_dir(folder.join("blobs"))
            .map(|blobs| blobs.flatten().filter_map(|blob| blob.metadata().ok()).map(|metadata| metadata.len()).sum())
            .unwrap_or(0);
        // First the sidecar: a removal that is cut short leaves no half model in the list.
        let _ = fs::remove_file(folder.join(SIDECAR));
        fs::remove_dir_all(&folder).map_err(|error| io_problem(&folder, &error))?;
        Ok(freed)
    }

    pub(crate) fn not_found(&self, wanted: &str) -> Problem {
        let names: Vec<_> = self.list().iter().map(|model| model.name.to_string()).collect();
        let found = if names.is_empty() { "no models yet".to_owned() } else { names.join(", ") };
        Problem::error(
            ProblemCode::ModelNotFound,
            format!("the model {wanted} is not in the store"),
            format!("模型库里没有 {wanted}"),
        )
        .found(found)
        .fix(
            format!("fetch it with `justtrain models pull {wanted}`"),
            format!("请执行 `justtrain models pull {wanted}` 下载"),
        )
    }
}

/// `path` with the platform's separators, refused when it could leave the snapshot.
pub(crate) fn safe_relative(path: &str) -> Result<PathBuf, Problem> {
    let relative = PathBuf::from(path);
    if !path.is_empty() && relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(relative);
    }
    Err(Problem::error(
        ProblemCode::FileFormat,
        "a source offers a file with an unsafe path",
        "来源中包含不安全的文件路径",
    )
    .found(path)
    .expected("a path inside the model's folder"))
}

/// Points `link` to the blob; a link that is already there is replaced by rename.
fn link_blob(folder: &Path, link: &Path, sha256: &str) -> std::io::Result<()> {
    let parent = link.parent().unwrap_or(folder);
    fs::create_dir_all(parent)?;
    let depth = parent.strip_prefix(folder).map_or(0, |inside| inside.components().count());
    let target: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", sha256]).collect();
    let fresh = link.with_extension("new-link");
    let _ = fs::remove_file(&fresh);
    #[cfg(unix)]
    std::os::unix::fs::symlink(&target, &fresh)?;
    #[cfg(not(unix))]
    fs::hard_link(parent.join(&target), &fresh)?;
    rename_durably(&fresh, link)
}

/// Removes snapshots and whole blobs that `sidecar` does not name. What cannot be removed stays and costs only room.
fn drop_former(folder: &Path, sidecar: &Sidecar) {
    let kept: HashSet<&str> =
        sidecar.files.iter().map(|file| file.sha256.as_str()).chain([sidecar.revision.as_str()]).collect();
    for inside in ["snapshots", "blobs"] {
        for entry in fs::read_dir(folder.join(inside)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if kept.contains(&*name) || name.contains('.') {
                continue;
            }
            let _ = if inside == "blobs" { fs::remove_file(entry.path()) } else { fs::remove_dir_all(entry.path()) };
        }
    }
}

/// The weights file's own hash; with several files, the hash of the sorted lines `SHA256  PATH`.
fn overall_sha256(files: &[StoredFile]) -> String {
    if let [file] = files {
        return file.sha256.clone();
    }
    let mut lines: Vec<_> = files.iter().map(|file| format!("{}  {}\n", file.sha256, file.path)).collect();
    lines.sort();
    hex(&Sha256::digest(lines.concat()))
}

/// A revision for a model that no repository versions: its files decide.
pub(crate) fn revision_of(files: &[StoredFile]) -> String {
    overall_sha256(files)[..40].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliver(store: &Store, name: &str, revision: &str, bytes: &[u8]) -> StoredModel {
        let name = ModelName::parse(name).unwrap();
        let sha256 = hex(&Sha256::digest(bytes));
        fs::write(store.blobs(&name).unwrap().join(&sha256), bytes).unwrap();
        let files = vec![StoredFile { path: "deep/model.gguf".into(), size: bytes.len() as u64, sha256 }];
        let delivery =
            Delivery { name, source: SourceKind::File, revision: revision.into(), license: Some("MIT".into()), files };
        store.publish(delivery).unwrap()
    }

    #[test]
    fn a_published_model_is_listed_and_read_through_its_link() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let model = deliver(&store, "org/small", "r1", b"GGUF one");
        assert_eq!(store.list(), std::slice::from_ref(&model));
        assert_eq!(fs::read(&model.path).unwrap(), b"GGUF one");
        assert_eq!(fs::read_to_string(folder.path().join("models--org--small/refs/main")).unwrap(), "r1");
    }

    #[test]
    fn a_new_revision_replaces_the_former_and_keeps_partial_downloads() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        deliver(&store, "org/small", "r1", b"GGUF one");
        let blobs = folder.path().join("models--org--small/blobs");
        fs::write(blobs.join("key.incomplete"), b"half").unwrap();
        let model = deliver(&store, "org/small", "r2", b"GGUF two");
        assert_eq!(fs::read(&model.path).unwrap(), b"GGUF two");
        assert_eq!(fs::read_dir(&blobs).unwrap().count(), 2);
        assert!(!folder.path().join("models--org--small/snapshots/r1").exists());
    }

    #[test]
    fn a_model_with_a_cut_file_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let model = deliver(&store, "org/small", "r1", b"GGUF one");
        fs::write(&model.path, b"GG").unwrap();
        assert!(store.list().is_empty());
    }

    #[test]
    fn removing_frees_the_bytes_and_a_second_removal_says_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        deliver(&store, "org/other", "r1", b"GGUF");
        let model = deliver(&store, "org/small", "r1", b"GGUF one");
        assert_eq!(store.remove(&model.name).unwrap(), 8);
        let problem = store.remove(&model.name).unwrap_err();
        assert_eq!(problem.code, ProblemCode::ModelNotFound);
        assert_eq!(problem.found.as_deref(), Some("org/other"));
    }

    #[test]
    fn a_path_that_leaves_the_snapshot_is_refused() {
        for bad in ["../x", "/x", "", "a/../../x"] {
            assert!(safe_relative(bad).is_err(), "{bad:?} was taken");
        }
    }
}
