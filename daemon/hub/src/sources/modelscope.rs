//! ModelScope: the hub that answers fastest from mainland China.

use justtrain_worker_api::{Problem, ProblemCode};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::SourceKind;
use super::repository::{Answer, Listing, RemoteFile, Repository, encoded, get_json};
use crate::hash::Digest;
use crate::http::{Http, HttpError, Token};
use crate::search::FoundModel;
use crate::store::{StoredFile, revision_of};
use crate::{ModelName, Settings};

/// A listing of this many entries was cut, without a word.
const LONGEST_LISTING: usize = 3000;
/// The default branch of every repository.
const BRANCH: &str = "master";
/// Older calls look for the token here.
const COOKIE: &str = "m_session_id";

pub(crate) struct ModelScope {
    endpoint: String,
    token: Option<Token>,
}

impl ModelScope {
    pub(super) fn new(settings: &Settings) -> Self {
        let token = settings.modelscope_token.clone().map(|secret| Token { secret, cookie: Some(COOKIE) });
        Self { endpoint: settings.modelscope_endpoint.clone(), token }
    }

    /// Licence and downloads; a listing is worth having without them.
    async fn details(&self, name: &ModelName, http: &Http) -> Details {
        let path = format!("openapi/v1/models/{name}");
        match get_json::<Envelope<Details>>(self, &path, Some(name), http).await {
            Ok(envelope) => envelope.data,
            Err(problem) => {
                tracing::debug!(%problem, "no details");
                Details::default()
            }
        }
    }
}

impl Repository for ModelScope {
    fn kind(&self) -> SourceKind {
        SourceKind::ModelScope
    }

    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    fn list<'a>(&'a self, name: &'a ModelName, http: &'a Http) -> Answer<'a, Listing> {
        Box::pin(async move {
            // Top level only, where the models are: a recursive listing is cut sooner.
            let path = format!("api/v1/models/{name}/repo/files?Revision={BRANCH}&Recursive=False");
            let (files, details) =
                tokio::join!(get_json::<Files>(self, &path, Some(name), http), self.details(name, http));
            let files = files?.data.files;
            if files.len() >= LONGEST_LISTING {
                return Err(cut_listing(name, files.len()));
            }
            let files: Vec<_> = files.into_iter().filter(|file| file.kind != "tree").map(File::remote).collect();
            Ok(Listing {
                revision: revision(&files),
                license: details.license.filter(|license| !license.is_empty()),
                gated: details.gated.unwrap_or(false),
                downloads: details.downloads,
                files,
            })
        })
    }

    /// The listing names no commit, so the branch is asked for; each file's SHA-256 tells when it has moved meanwhile.
    fn file_path(&self, name: &ModelName, _revision: &str, path: &str) -> String {
        format!("api/v1/models/{name}/repo?Revision={BRANCH}&FilePath={}", encoded(path))
    }

    fn search<'a>(&'a self, query: &'a str, limit: usize, http: &'a Http) -> Answer<'a, Vec<FoundModel>> {
        Box::pin(async move {
            let query = encoded(query);
            let path = format!("openapi/v1/models?search={query}&sort=downloads&page_number=1&page_size={limit}");
            let page: Envelope<Page> = get_json(self, &path, None, http).await?;
            Ok(page.data.models.into_iter().filter_map(Details::found).collect())
        })
    }

    fn refused(&self, name: &ModelName, url: &Url, error: &HttpError) -> Problem {
        match error {
            HttpError::Status { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => Problem::error(
                ProblemCode::SourceFailed,
                "ModelScope gives this model only to people who have access to it",
                "ModelScope 上的该模型需要访问权限",
            )
            .file(url)
            .fix(
                format!("ask for access at https://modelscope.cn/models/{name}, make a token at https://modelscope.cn/my/myaccesstoken, and put it into MODELSCOPE_API_TOKEN before the daemon starts"),
                format!("请在 https://modelscope.cn/models/{name} 申请访问，在 https://modelscope.cn/my/myaccesstoken 创建令牌，并在启动守护进程前设置 MODELSCOPE_API_TOKEN"),
            ),
            error => error.problem(url.as_str()),
        }
    }
}

fn cut_listing(name: &ModelName, entries: usize) -> Problem {
    Problem::error(
        ProblemCode::SourceFailed,
        "ModelScope cuts long listings, so files of this model may be missing from it",
        "ModelScope 会截断过长的文件列表，可能缺少该模型的文件",
    )
    .file(name)
    .found(format!("{entries} entries"))
    .expected(format!("fewer than {LONGEST_LISTING}"))
    .fix(
        "take it from another source: `--source hub` or `--source mirror`",
        "请改用其他来源：`--source hub` 或 `--source mirror`",
    )
}

/// The same files are the same revision.
fn revision(files: &[RemoteFile]) -> String {
    let stored = |file: &RemoteFile| StoredFile {
        path: file.path.clone(),
        size: file.size.unwrap_or(0),
        sha256: file.digest.as_ref().map_or("", Digest::as_str).to_owned(),
        blob: None,
    };
    revision_of(&files.iter().map(stored).collect::<Vec<_>>())
}

/// The answer of the older calls.
#[derive(Debug, Deserialize)]
struct Files {
    #[serde(rename = "Data")]
    data: FilesData,
}

#[derive(Debug, Deserialize)]
struct FilesData {
    #[serde(rename = "Files")]
    files: Vec<File>,
}

#[derive(Debug, Deserialize)]
struct File {
    #[serde(rename = "Path")]
    path: String,
    #[serde(default, rename = "Size")]
    size: Option<u64>,
    #[serde(default, rename = "Sha256")]
    sha256: Option<String>,
    /// `blob` or `tree`.
    #[serde(default, rename = "Type")]
    kind: String,
}

impl File {
    fn remote(self) -> RemoteFile {
        RemoteFile { digest: self.sha256.as_deref().and_then(Digest::parse), path: self.path, size: self.size }
    }
}

/// The answer of the newer calls.
#[derive(Debug, Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    models: Vec<Details>,
}

#[derive(Debug, Default, Deserialize)]
struct Details {
    #[serde(default)]
    id: String,
    #[serde(default)]
    license: Option<String>,
    #[serde(default)]
    downloads: Option<u64>,
    #[serde(default)]
    file_size: Option<u64>,
    #[serde(default)]
    gated: Option<bool>,
}

impl Details {
    fn found(self) -> Option<FoundModel> {
        Some(FoundModel {
            name: ModelName::parse(&self.id).ok()?,
            source: SourceKind::ModelScope,
            license: self.license.filter(|license| !license.is_empty()),
            downloads: self.downloads,
            size_bytes: self.file_size.filter(|size| *size > 0),
            parameters: None,
            gated: self.gated.unwrap_or(false),
        })
    }
}
