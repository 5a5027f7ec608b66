//! Models that Hugging Face's own tools have fetched: found and used where they lie, never changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::selection::{Selection, choose};
use crate::store::{ModelFormat, StoredFile, StoredModel, overall_sha256};
use crate::{ModelName, SourceKind};

/// `HF_HUB_CACHE`.
#[derive(Debug, Clone)]
pub(crate) struct HubCache {
    root: PathBuf,
}

impl HubCache {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Every whole model, by name.
    pub(crate) fn list(&self) -> Vec<StoredModel> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let name = |entry: fs::DirEntry| {
            let folder = entry.file_name().into_string().ok()?;
            ModelName::from_id(folder.strip_prefix("models--")?).ok()
        };
        let mut models: Vec<_> = entries.flatten().filter_map(name).filter_map(|name| self.get(&name)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// The model at the commit of its main branch, where all of it is here. The cache has no list of what belongs to a
    /// model: it counts as whole when it has weights, every shard that their index names, and a tokenizer.
    pub(crate) fn get(&self, name: &ModelName) -> Option<StoredModel> {
        let folder = self.root.join(name.folder());
        let revision = fs::read_to_string(folder.join("refs/main")).ok()?.trim().to_owned();
        let snapshot = folder.join("snapshots").join(&revision);
        let names = file_names(&snapshot);
        let paths: Vec<_> = names.iter().map(String::as_str).collect();
        let chosen = choose(name.as_str(), &paths, &Selection::default()).ok()?;
        let mut files = Vec::with_capacity(chosen.len());
        for path in names.iter().filter(|path| chosen.contains(*path)) {
            files.push(stored_file(&snapshot, path)?);
        }
        let gguf = files.iter().find(|file| file.path.ends_with(".gguf"));
        if gguf.is_none() && !is_whole(&snapshot, &names) {
            return None;
        }
        let created = fs::metadata(&snapshot).and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
        Some(StoredModel {
            id: name.id(),
            name: name.clone(),
            path: gguf.map_or_else(|| snapshot.clone(), |file| snapshot.join(&file.path)),
            format: if gguf.is_some() { ModelFormat::Gguf } else { ModelFormat::Safetensors },
            size_bytes: files.iter().map(|file| file.size).sum(),
            source: SourceKind::Cache,
            revision,
            license: None,
            sha256: overall_sha256(&files),
            created: created.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            last_used: None,
            files,
        })
    }
}

/// The files of the snapshot itself; a link whose blob is not there is not one.
fn file_names(snapshot: &Path) -> Vec<String> {
    let entries = fs::read_dir(snapshot).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn stored_file(snapshot: &Path, path: &str) -> Option<StoredFile> {
    let blob = fs::canonicalize(snapshot.join(path)).ok()?;
    let name = blob.file_name()?.to_str()?.to_owned();
    let sha256 = if name.len() == 64 { name.clone() } else { String::new() };
    Some(StoredFile { path: path.to_owned(), size: fs::metadata(&blob).ok()?.len(), sha256, blob: Some(name) })
}

fn is_whole(snapshot: &Path, names: &[String]) -> bool {
    let has = |name: &str| names.iter().any(|there| there == name);
    let tokenizer = ["tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json"].into_iter().any(has);
    let index = fs::read(snapshot.join("model.safetensors.index.json")).ok();
    let shards = match index.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok()) {
        Some(index) => index["weight_map"]
            .as_object()
            .is_some_and(|weights| weights.values().all(|shard| shard.as_str().is_some_and(has))),
        // Without an index there is one file; a shard alone is a part of something.
        None => !names.iter().any(|name| name.contains("-of-") && name.ends_with(".safetensors")),
    };
    has("config.json") && tokenizer && (shards || has("model.safetensors"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with one snapshot of these files, as `huggingface_hub` lays them out.
    fn cache(files: &[(&str, &str)]) -> (tempfile::TempDir, HubCache) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("models--org--small");
        let snapshot = folder.join("snapshots/c0ffee");
        for made in [&snapshot, &folder.join("blobs"), &folder.join("refs")] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(folder.join("refs/main"), "c0ffee").unwrap();
        for (index, (name, text)) in files.iter().enumerate() {
            let blob = format!("{index:064x}");
            fs::write(folder.join("blobs").join(&blob), text).unwrap();
            std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
        }
        let cache = HubCache::new(root.path().to_owned());
        (root, cache)
    }

    #[test]
    fn a_whole_model_is_found_where_it_lies() {
        let (_root, cache) = cache(&[("config.json", "{}"), ("model.safetensors", "w"), ("tokenizer.json", "{}")]);
        let model = cache.get(&ModelName::parse("org/small").unwrap()).unwrap();
        assert_eq!((model.source, model.size_bytes, model.revision.as_str()), (SourceKind::Cache, 5, "c0ffee"));
        assert_eq!(fs::read_to_string(model.path.join("model.safetensors")).unwrap(), "w");
        assert_eq!(cache.list(), [model]);
    }

    #[test]
    fn half_a_model_is_none() {
        let index =
            r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        for files in [
            &[("config.json", "{}"), ("model.safetensors", "w")][..],
            &[("config.json", "{}"), ("tokenizer.json", "{}")],
            &[("config.json", "{}"), ("tokenizer.json", "{}"), ("model-00001-of-00002.safetensors", "w")],
            &[
                ("config.json", "{}"),
                ("tokenizer.json", "{}"),
                ("model.safetensors.index.json", index),
                ("model-00001-of-00002.safetensors", "w"),
            ],
        ] {
            assert_eq!(cache(files).1.list(), [], "{files:?}");
        }
        let (root, cache) = cache(&[("m.gguf", "GGUF")]);
        assert_eq!(cache.list().len(), 1);
        fs::remove_file(root.path().join(format!("models--org--small/blobs/{:064x}", 0))).unwrap();
        assert_eq!(cache.list(), [], "its link leads nowhere");
    }
}
