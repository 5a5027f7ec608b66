//! A server that has repositories of models: what it offers under a name, and how its files come into the store.

use std::future::Future;
use std::pin::Pin;

use justtrain_worker_api::{Problem, ProblemCode};
use reqwest::Url;
use serde::de::DeserializeOwned;

use super::{Context, Fetched, Looked, Offer, Source, SourceKind, Wanted, downloading, not_mine};
use crate::ModelName;
use crate::disk::ensure_room;
use crate::download::{Download, download};
use crate::hash::Digest;
use crate::http::{Http, HttpError, Token};
use crate::search::FoundModel;
use crate::selection::{Selection, choose};
use crate::store::{Delivery, safe_relative};

/// One revision of a repository.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    /// A commit, or what stands for one.
    pub(crate) revision: String,
    pub(crate) license: Option<String>,
    /// Its terms must be accepted before it can be fetched.
    pub(crate) gated: bool,
    pub(crate) downloads: Option<u64>,
    pub(crate) files: Vec<RemoteFile>,
}

#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    pub(crate) path: String,
    pub(crate) size: Option<u64>,
    pub(crate) digest: Option<Digest>,
}

impl Listing {
    /// The files that a pull takes.
    pub(crate) fn choose(&self, name: &ModelName, selection: &Selection) -> Result<Vec<&RemoteFile>, Problem> {
        let paths: Vec<_> = self.files.iter().map(|file| file.path.as_str()).collect();
        let chosen = choose(name.as_str(), &paths, selection)?;
        Ok(self.files.iter().filter(|file| chosen.contains(&file.path)).collect())
    }
}

pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Problem>> + Send + 'a>>;

/// A server's protocol. Whatever speaks one is a [`Source`].
pub(crate) trait Repository: Send + Sync {
    fn kind(&self) -> SourceKind;

    fn endpoint(&self) -> &str;

    /// Sent to the endpoint's own host only.
    fn token(&self) -> Option<&Token>;

    fn list<'a>(&'a self, name: &'a ModelName, http: &'a Http) -> Answer<'a, Listing>;

    /// Path and query below the endpoint of a file's bytes.
    fn file_path(&self, name: &ModelName, revision: &str, path: &str) -> String;

    fn search<'a>(&'a self, query: &'a str, limit: usize, http: &'a Http) -> Answer<'a, Vec<FoundModel>>;

    /// A failed request for `name`, explained.
    fn refused(&self, name: &ModelName, url: &Url, error: &HttpError) -> Problem;

    fn url(&self, path: &str) -> Result<Url, Problem> {
        let text = format!("{}/{path}", self.endpoint().trim_end_matches('/'));
        Url::parse(&text).map_err(|error| {
            Problem::error(ProblemCode::InvalidValue, "the endpoint is not a web address", "服务器地址不是有效网址")
                .key(self.kind().as_str())
                .found(format!("{text}: {error}"))
                .expected("such as https://huggingface.co")
        })
    }
}

impl<R: Repository> Source for R {
    fn kind(&self) -> SourceKind {
        Repository::kind(self)
    }

    fn has(&self, wanted: &Wanted) -> bool {
        matches!(wanted, Wanted::Repository { .. })
    }

    fn look<'a>(&'a self, wanted: &'a Wanted, http: &'a Http) -> Looked<'a> {
        Box::pin(async move {
            match wanted {
                Wanted::Repository { name, .. } => self.list(name, http).await.map(Offer::Listing),
                Wanted::Url(_) | Wanted::Path(_) => Err(not_mine(Repository::kind(self))),
            }
        })
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, offer: Offer, context: &'a mut Context<'_, '_>) -> Fetched<'a> {
        Box::pin(async move {
            match (wanted, offer) {
                (Wanted::Repository { name, .. }, Offer::Listing(listing)) => {
                    deliver(self, name, &listing, context).await
                }
                _ => Err(not_mine(Repository::kind(self))),
            }
        })
    }
}

async fn deliver(
    server: &impl Repository,
    name: &ModelName,
    listing: &Listing,
    context: &mut Context<'_, '_>,
) -> Result<Delivery, Problem> {
    safe_relative(&listing.revision)?;
    let chosen = listing.choose(name, context.selection)?;
    let total = chosen.iter().filter_map(|file| file.size).sum();
    context.meter.start(total);
    let blobs = context.store.blobs(name)?;
    let here = context.store.downloaded(name, chosen.iter().filter_map(|file| file.digest.as_ref()));
    ensure_room(&blobs, u64::saturating_sub(total, here))?;
    let mut files = Vec::with_capacity(chosen.len());
    for file in chosen {
        safe_relative(&file.path)?;
        let url = server.url(&server.file_path(name, &listing.revision, &file.path))?;
        context.meter.status(downloading(&file.path, server.endpoint()));
        let key =
            file.digest.as_ref().map_or_else(|| file.path.replace('/', "--"), |digest| digest.as_str().to_owned());
        let what = Download {
            url: &url,
            token: server.token(),
            path: &file.path,
            key: &key,
            size: file.size,
            digest: file.digest.as_ref(),
            magic: if file.path.ends_with(".gguf") { b"GGUF" } else { b"" },
            explain: &|error| server.refused(name, &url, error),
        };
        files.push(download(context.http, &blobs, &what, context.meter, context.cancel).await?);
    }
    Ok(Delivery {
        name: name.clone(),
        source: Repository::kind(server),
        revision: listing.revision.clone(),
        license: listing.license.clone(),
        files,
    })
}

/// A JSON document at `path` below the server's endpoint, about `name` where it is about one model.
pub(crate) async fn get_json<T: DeserializeOwned>(
    server: &impl Repository,
    path: &str,
    name: Option<&ModelName>,
    http: &Http,
) -> Result<T, Problem> {
    let url = server.url(path)?;
    let bytes = http.get_bytes(&url, server.token()).await.map_err(|error| match name {
        Some(name) => server.refused(name, &url, &error),
        None => error.problem(url.as_str()),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Problem::error(ProblemCode::SourceFailed, "the server's answer is not understood", "无法理解服务器的回答")
            .file(&url)
            .found(error)
    })
}

/// A value in a URL's query.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
