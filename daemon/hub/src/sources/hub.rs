//! The Hugging Face hub and servers that speak its protocol: one request lists a repository, one per file brings it.

use std::collections::HashMap;

use justtrain_worker_api::{Problem, ProblemCode};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::SourceKind;
use super::repository::{Answer, Listing, RemoteFile, Repository, encoded, get_json};
use crate::hash::Digest;
use crate::http::{Http, HttpError, Token};
use crate::search::FoundModel;
use crate::{ModelName, Settings};

/// One server.
pub(crate) struct HuggingFace {
    kind: SourceKind,
    endpoint: String,
    token: Option<Token>,
}

impl HuggingFace {
    pub(super) fn hub(settings: &Settings) -> Self {
        let token = settings.hub_token().map(|secret| Token { secret, cookie: None });
        Self { kind: SourceKind::Hub, endpoint: settings.hub_endpoint.clone(), token }
    }

    /// The mirror never sees the token.
    pub(super) fn mirror(settings: &Settings) -> Self {
        Self { kind: SourceKind::Mirror, endpoint: settings.mirror_endpoint.clone(), token: None }
    }
}

impl Repository for HuggingFace {
    fn kind(&self) -> SourceKind {
        self.kind
    }

    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    fn list<'a>(&'a self, name: &'a ModelName, http: &'a Http) -> Answer<'a, Listing> {
        Box::pin(async move {
            let path = format!("api/models/{name}/revision/main?blobs=true");
            get_json::<Model>(self, &path, Some(name), http).await?.listing()
        })
    }

    fn file_path(&self, name: &ModelName, revision: &str, path: &str) -> String {
        format!("{name}/resolve/{revision}/{}", encoded(path))
    }

    fn search<'a>(&'a self, query: &'a str, limit: usize, http: &'a Http) -> Answer<'a, Vec<FoundModel>> {
        Box::pin(async move {
            let fields =
                ["downloads", "gated", "safetensors", "tags"].map(|field| format!("&expand[]={field}")).concat();
            let query = encoded(query);
            let path = format!("api/models?search={query}&limit={limit}&sort=downloads&direction=-1{fields}");
            let models: Vec<Model> = get_json(self, &path, None, http).await?;
            Ok(models.iter().filter_map(|model| model.found(self.kind)).collect())
        })
    }

    fn refused(&self, name: &ModelName, url: &Url, error: &HttpError) -> Problem {
        let HttpError::Status { status, code, .. } = error else { return error.problem(url.as_str()) };
        let page = format!("https://huggingface.co/{name}");
        match (code.as_deref(), *status) {
            (Some("GatedRepo"), _) | (None, StatusCode::FORBIDDEN) => {
                Problem::error(ProblemCode::SourceFailed, "this model is given only to people who accepted its terms", "该模型需要先同意使用条款")
                    .file(url)
                    .found(if self.token.is_some() { "a token without access to it" } else { "no token" })
                    .fix(
                        format!("1. sign in at {page} and click “Agree and access repository” (some owners answer by hand, later); 2. make a token with read access at https://huggingface.co/settings/tokens; 3. put it into HF_TOKEN before the daemon starts, or run `hf auth login`, which writes it to the file that we read too"),
                        format!("1. 登录 {page}，点击 “Agree and access repository”（有的作者需要人工审批）；2. 在 https://huggingface.co/settings/tokens 创建有读权限的令牌；3. 启动守护进程前设置 HF_TOKEN，或执行 `hf auth login` 写入令牌文件，本程序也会读取"),
                    )
            }
            // Without a token the hub says the same of what is private and of what is not there.
            (Some("RepoNotFound"), _) | (None, StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND) => {
                Problem::error(ProblemCode::SourceFailed, "the server does not have this model, or it is private", "服务器上没有该模型，或它是私有模型")
                    .file(url)
                    .found(status)
                    .fix(
                        format!("check the spelling with `justtrain models search`; for a private model make a token at https://huggingface.co/settings/tokens and put it into HF_TOKEN ({page})"),
                        format!("用 `justtrain models search` 核对名称；私有模型请在 https://huggingface.co/settings/tokens 创建令牌并设置 HF_TOKEN（{page}）"),
                    )
            }
            _ => error.problem(url.as_str()),
        }
    }
}

/// A model as `/api/models` describes it, as far as it is used.
#[derive(Debug, Deserialize)]
struct Model {
    #[serde(default)]
    id: String,
    /// The commit.
    #[serde(default)]
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default, rename = "cardData")]
    card: Option<Card>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    downloads: Option<u64>,
    /// `false`, `"auto"` or `"manual"`.
    #[serde(default)]
    gated: serde_json::Value,
    #[serde(default)]
    safetensors: Option<Safetensors>,
}

#[derive(Debug, Deserialize)]
struct Card {
    #[serde(default)]
    license: Option<serde_json::Value>,
}

/// How many parameters there are of each type.
#[derive(Debug, Deserialize)]
struct Safetensors {
    #[serde(default)]
    parameters: HashMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
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

impl Model {
    fn listing(self) -> Result<Listing, Problem> {
        let license = self.license();
        Ok(Listing {
            license,
            gated: self.is_gated(),
            downloads: self.downloads,
            revision: self.sha,
            files: self.siblings.into_iter().map(Sibling::file).collect(),
        })
    }

    fn found(&self, source: SourceKind) -> Option<FoundModel> {
        let parameters = self.safetensors.as_ref().map(|counts| counts.parameters.values().sum());
        Some(FoundModel {
            name: ModelName::parse(&self.id).ok()?,
            source,
            license: self.license(),
            downloads: self.downloads,
            size_bytes: self.safetensors.as_ref().and_then(Safetensors::bytes),
            parameters,
            gated: self.is_gated(),
        })
    }

    fn is_gated(&self) -> bool {
        self.gated.is_string() || self.gated == true
    }

    fn license(&self) -> Option<String> {
        let card = self.card.as_ref().and_then(|card| card.license.as_ref()?.as_str()).map(str::to_owned);
        card.or_else(|| self.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned))
    }
}

impl Safetensors {
    /// `None` where a type is one that we do not know the width of.
    fn bytes(&self) -> Option<u64> {
        let width = |dtype: &str| match dtype {
            "F64" | "I64" | "U64" => Some(8),
            "F32" | "I32" | "U32" => Some(4),
            "F16" | "BF16" | "I16" | "U16" => Some(2),
            "I8" | "U8" | "BOOL" => Some(1),
            dtype if dtype.starts_with("F8_") => Some(1),
            _ => None,
        };
        self.parameters.iter().map(|(dtype, count)| Some(count * width(dtype)?)).sum()
    }
}

impl Sibling {
    fn file(self) -> RemoteFile {
        let (size, digest) = match self.lfs {
            Some(lfs) => (Some(lfs.size), Digest::parse(&lfs.sha256)),
            None => (self.size, self.blob_id.as_deref().and_then(Digest::parse)),
        };
        RemoteFile { path: self.path, size, digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_described_as_far_as_the_hub_does() {
        let found = |extra: &str| {
            let model: Model =
                serde_json::from_str(&format!(r#"{{"id": "a/b", "tags": ["license:mit"]{extra}}}"#)).unwrap();
            model.found(SourceKind::Hub).unwrap()
        };
        let plain = found("");
        assert_eq!((plain.license.as_deref(), plain.size_bytes, plain.gated), (Some("mit"), None, false));
        let full = found(r#", "gated": "auto", "downloads": 7, "safetensors": {"parameters": {"BF16": 10, "F32": 1}}"#);
        assert_eq!((full.size_bytes, full.parameters, full.downloads, full.gated), (Some(24), Some(11), Some(7), true));
        assert_eq!(found(r#", "gated": false, "safetensors": {"parameters": {"X4": 10}}"#).size_bytes, None);
    }

    #[test]
    fn a_gated_model_is_explained() {
        let settings = Settings { hub_token: None, ..Settings::at("https://hub.invalid", "https://mirror.invalid") };
        let hub = HuggingFace::hub(&settings);
        let url = Url::parse("https://hub.invalid/x").unwrap();
        let refused = |status, code: Option<&str>| {
            let error = HttpError::Status { status, retry_after: None, code: code.map(str::to_owned) };
            hub.refused(&ModelName::parse("org/m").unwrap(), &url, &error)
        };
        let gated = refused(StatusCode::UNAUTHORIZED, Some("GatedRepo"));
        assert!(gated.fix.en.contains("huggingface.co/org/m") && gated.fix.en.contains("HF_TOKEN"), "{gated}");
        let missing = refused(StatusCode::UNAUTHORIZED, Some("RepoNotFound"));
        assert!(missing.message.en.contains("private") && missing.fix.en.contains("models search"), "{missing}");
    }
}
