//! The Hugging Face hub and servers that speak its protocol: one request lists a repository, one per file brings it.

use std::collections::HashSet;

use justtrain_worker_api::{Problem, ProblemCode};
use reqwest::Url;
use serde::Deserialize;

use super::{Context, Fetched, Source, SourceKind, Wanted, downloading, not_mine};
use crate::download::{Download, download};
use crate::store::{Delivery, StoredFile, safe_relative};
use crate::{ModelName, Settings};

/// One server.
pub(super) struct HuggingFace {
    kind: SourceKind,
    endpoint: String,
    /// Sent to this server's own address only.
    token: Option<String>,
}

impl HuggingFace {
    pub(super) fn hub(settings: &Settings) -> Self {
        Self { kind: SourceKind::Hub, endpoint: settings.hub_endpoint.clone(), token: settings.hub_token.clone() }
    }

    /// The mirror never sees the token.
    pub(super) fn mirror(settings: &Settings) -> Self {
        Self { kind: SourceKind::Mirror, endpoint: settings.mirror_endpoint.clone(), token: None }
    }

    fn url(&self, path: &str) -> Result<Url, Problem> {
        let text = format!("{}/{path}", self.endpoint.trim_end_matches('/'));
        Url::parse(&text).map_err(|error| {
            Problem::error(ProblemCode::InvalidValue, "HF_ENDPOINT is not a web address", "HF_ENDPOINT 不是有效网址")
                .found(format!("{text}: {error}"))
                .expected("such as https://huggingface.co")
        })
    }

    async fn list(&self, name: &ModelName, context: &mut Context<'_, '_>) -> Result<Repository, Problem> {
        let url = self.url(&format!("api/models/{name}/revision/main?blobs=true"))?;
        let answer = context.cancel.guard(context.http.get_bytes(&url, self.token.as_deref())).await?;
        let bytes = answer.map_err(|error| error.problem(url.as_str()))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Problem::error(
                ProblemCode::SourceFailed,
                "the server's answer is not a list of files",
                "服务器返回的不是文件列表",
            )
            .file(&url)
            .found(error)
        })
    }

    async fn deliver(&self, name: &ModelName, context: &mut Context<'_, '_>) -> Result<Delivery, Problem> {
        context.meter.status(downloading(name, &self.endpoint));
        let repository = self.list(name, context).await?;
        safe_relative(&repository.sha)?;
        let chosen = repository.choose(name)?;
        context.meter.start(chosen.iter().map(|file| file.size().unwrap_or(0)).sum());
        let blobs = context.store.blobs(name)?;
        let mut files = Vec::with_capacity(chosen.len());
        for file in chosen {
            safe_relative(&file.path)?;
            let url = self.url(&format!("{name}/resolve/{}/{}", repository.sha, file.path))?;
            context.meter.status(downloading(&file.path, &self.endpoint));
            let key = match (&file.lfs, &file.blob_id) {
                (Some(lfs), _) => lfs.sha256.clone(),
                (None, Some(blob_id)) => blob_id.clone(),
                (None, None) => file.path.replace('/', "--"),
            };
            safe_relative(&key)?;
            let what = Download {
                url: &url,
                token: self.token.as_deref(),
                key: &key,
                size: file.size(),
                sha256: file.lfs.as_ref().map(|lfs| lfs.sha256.as_str()),
                magic: if file.path.ends_with(".gguf") { b"GGUF" } else { b"" },
            };
            let (size, sha256) = download(context.http, &blobs, &what, context.meter, context.cancel).await?;
            files.push(StoredFile { path: file.path.clone(), size, sha256 });
        }
        let license = repository.license();
        Ok(Delivery { name: name.clone(), source: self.kind, revision: repository.sha, license, files })
    }
}

impl Source for HuggingFace {
    fn kind(&self) -> SourceKind {
        self.kind
    }

    fn has(&self, wanted: &Wanted) -> bool {
        matches!(wanted, Wanted::Repository { .. })
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, context: &'a mut Context<'_, '_>) -> Fetched<'a> {
        Box::pin(async move {
            match wanted {
                Wanted::Repository { name, .. } => self.deliver(name, context).await,
                Wanted::Url(_) | Wanted::Path(_) => Err(not_mine(self.kind)),
            }
        })
    }
}

/// The answer to `/api/models/NAME/revision/main?blobs=true`, as far as it is used.
#[derive(Debug, Deserialize)]
struct Repository {
    /// The commit.
    sha: String,
    #[serde(default)]
    siblings: Vec<RepositoryFile>,
    #[serde(default, rename = "cardData")]
    card: Option<Card>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Card {
    #[serde(default)]
    license: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct RepositoryFile {
    #[serde(rename = "rfilename")]
    path: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, rename = "blobId")]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl RepositoryFile {
    fn size(&self) -> Option<u64> {
        self.lfs.as_ref().map(|lfs| lfs.size).or(self.size)
    }
}

impl Repository {
    /// The safetensors weights with everything small beside them, or the only GGUF file.
    fn choose(&self, name: &ModelName) -> Result<Vec<&RepositoryFile>, Problem> {
        // Subfolders hold other formats of the same weights.
        let top: Vec<_> = self.siblings.iter().filter(|file| !file.path.contains('/')).collect();
        if top.iter().any(|file| file.path.ends_with(".safetensors")) {
            return Ok(top.into_iter().filter(|file| belongs_to_checkpoint(&file.path)).collect());
        }
        let ggufs: Vec<_> = top.into_iter().filter(|file| file.path.ends_with(".gguf")).collect();
        if ggufs.len() == 1 {
            return Ok(ggufs);
        }
        let names: HashSet<_> = ggufs.iter().map(|file| file.path.as_str()).collect();
        let found =
            if names.is_empty() { "neither".to_owned() } else { names.into_iter().collect::<Vec<_>>().join(", ") };
        Err(Problem::error(
            ProblemCode::SourceFailed,
            format!("{name} has no weights that can be taken as they are"),
            format!("{name} 中没有可直接使用的权重"),
        )
        .found(found)
        .expected("*.safetensors, or one .gguf file")
        .fix("of several GGUF files, pull one by its web address", "若有多个 GGUF 文件，请用其中一个的网址下载"))
    }

    fn license(&self) -> Option<String> {
        let card = self.card.as_ref().and_then(|card| card.license.as_ref()?.as_str()).map(str::to_owned);
        card.or_else(|| self.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned))
    }
}

/// Weights, configuration, tokenizer, template and licence; no pictures, no other framework's weights.
pub(super) fn belongs_to_checkpoint(file: &str) -> bool {
    [".safetensors", ".json", ".jinja", ".txt"].iter().any(|ending| file.ends_with(ending))
        || file == "tokenizer.model"
        || file.starts_with("LICENSE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(files: &[&str]) -> Repository {
        let siblings: Vec<_> = files.iter().map(|file| serde_json::json!({"rfilename": file, "size": 1})).collect();
        serde_json::from_value(serde_json::json!({"sha": "c0", "siblings": siblings, "tags": ["license:mit"]})).unwrap()
    }

    #[test]
    fn the_checkpoint_is_taken_and_nothing_else() {
        let all = ["README.md", "config.json", "model.safetensors", "onnx/model.onnx", "pytorch_model.bin", "x.gguf"];
        let repository = repository(&all);
        let chosen: Vec<_> =
            repository.choose(&ModelName::parse("a/b").unwrap()).unwrap().iter().map(|file| &*file.path).collect();
        assert_eq!(chosen, ["config.json", "model.safetensors"]);
        assert_eq!(repository.license().as_deref(), Some("mit"));
    }

    #[test]
    fn one_gguf_is_taken_and_several_are_named() {
        let name = ModelName::parse("a/b").unwrap();
        assert_eq!(repository(&["a.gguf", "README.md"]).choose(&name).unwrap().len(), 1);
        let problem = repository(&["a.gguf", "b.gguf"]).choose(&name).unwrap_err();
        assert!(problem.found.unwrap().contains("b.gguf"));
    }
}
