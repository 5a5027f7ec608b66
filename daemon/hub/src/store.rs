//! The models on this disk, in the layout of the Hugging Face cache.
//!
//! ```text
//! models--ORG--NAME/
//!   justtrain.json              where it came from; written last, so a folder without it is not a model yet
//!   last-used                   empty; its time is when a job or an answer last read the model
//!   blobs/DIGEST                the bytes, once; SHA-256, or git's hash where the hub knows a small file by that
//!   blobs/KEY.partial, .parts   a download that goes on at the next try, and what of it is on the disk
//!   refs/main                   REVISION
//!   snapshots/REVISION/FILE     links to ../../blobs/DIGEST
//! ```

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use justtrain_worker_api::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::disk::{io_problem, rename_durably, sync_folder, write_durably};
use crate::hash::{Digest, hex};
use crate::{ModelName, SourceKind};

const SIDECAR: &str = "justtrain.json";
const LAST_USED: &str = "last-used";

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
    /// When something last read it, in seconds since 1970; `None` where nothing has, or nobody keeps count.
    pub last_used: Option<u64>,
    pub files: Vec<StoredFile>,
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

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Relative to the snapshot, with `/` between its parts.
    pub path: String,
    pub size: u64,
    /// Empty in a cache that other tools keep: there the blob's name is its digest.
    pub sha256: String,
    /// Name in `blobs` where it is not the SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) blob: Option<String>,
}

impl StoredFile {
    pub(crate) fn blob(&self) -> &str {
        self.blob.as_deref().unwrap_or(&self.sha256)
    }
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

    /// Bytes of `digests` that are in `blobs` already, whole or in part.
    pub(crate) fn downloaded<'a>(&self, name: &ModelName, digests: impl Iterator<Item = &'a Digest>) -> u64 {
        let blobs = self.root.join(name.folder()).join("blobs");
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        digests
            .map(|digest| match size(blobs.join(digest.as_str())) {
                // Blocks, not length: a partial file has holes.
                0 => fs::metadata(blobs.join(format!("{}.partial", digest.as_str())))
                    .map_or(0, |metadata| metadata.blocks() * 512),
                size => size,
            })
            .sum()
    }

    /// Remembers that the model is read now. Nothing depends on it, so nothing fails with it.
    pub(crate) fn touch(&self, name: &ModelName) {
        let path = self.root.join(name.folder()).join(LAST_USED);
        let touched = fs::File::create(&path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(path = %path.display(), %error, "the time of use was not kept");
        }
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
        let gguf = sidecar.files.iter().find(|file| file.path.ends_with(".gguf"));
        let path = match (sidecar.format, gguf) {
            (ModelFormat::Gguf, Some(file)) => snapshot.join(&file.path),
            _ => snapshot,
        };
        let touched = fs::metadata(folder.join(LAST_USED)).and_then(|metadata| metadata.modified());
        Some(StoredModel {
            last_used: touched.ok().map(seconds),
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
            files: sidecar.files,
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
            created: seconds(SystemTime::now()),
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
            link_blob(folder, &link, file.blob()).map_err(|error| io_problem(&link, &error))?;
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

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
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
fn link_blob(folder: &Path, link: &Path, blob: &str) -> std::io::Result<()> {
    let parent = link.parent().unwrap_or(folder);
    fs::create_dir_all(parent)?;
    let depth = parent.strip_prefix(folder).map_or(0, |inside| inside.components().count());
    let target: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", blob]).collect();
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
    let kept: HashSet<&str> = sidecar.files.iter().map(StoredFile::blob).chain([sidecar.revision.as_str()]).collect();
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
pub(crate) fn overall_sha256(files: &[StoredFile]) -> String {
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
        let files = vec![StoredFile { path: "deep/model.gguf".into(), size: bytes.len() as u64, sha256, blob: None }];
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
        fs::write(blobs.join("key.partial"), b"half").unwrap();
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
