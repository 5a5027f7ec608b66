//! A GGUF file at a web address.

use justtrain_worker_api::{Problem, ProblemCode};
use reqwest::Url;
use sha2::{Digest, Sha256};

use super::{Context, Fetched, Offer, Source, SourceKind, Wanted, downloading, not_mine};
use crate::ModelName;
use crate::catalogue;
use crate::download::{Download, download};
use crate::hash::hex;
use crate::store::{Delivery, revision_of};

pub(super) struct WebFile;

impl Source for WebFile {
    fn kind(&self) -> SourceKind {
        SourceKind::Url
    }

    fn has(&self, wanted: &Wanted) -> bool {
        matches!(wanted, Wanted::Url(_))
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, _: Offer, context: &'a mut Context<'_, '_>) -> Fetched<'a> {
        Box::pin(async move {
            match wanted {
                Wanted::Url(url) => deliver(url, context).await,
                Wanted::Repository { .. } | Wanted::Path(_) => Err(not_mine(SourceKind::Url)),
            }
        })
    }
}

async fn deliver(url: &Url, context: &mut Context<'_, '_>) -> Result<Delivery, Problem> {
    let file = file_name(url)?;
    let name = match context.name {
        Some(name) => name.clone(),
        None => ModelName::from_file_name(file.trim_end_matches(".gguf"))?,
    };
    context.meter.start(0);
    context.meter.status(downloading(&file, url.host_str().unwrap_or("")));
    let blobs = context.store.blobs(&name)?;
    // Nothing but the address identifies the file before all of it is here.
    let key = hex(&Sha256::digest(url.as_str()));
    let what = Download {
        url,
        token: None,
        path: &file,
        key: &key,
        size: None,
        digest: None,
        magic: b"GGUF",
        explain: &|error| error.problem(url.as_str()),
    };
    let file = download(context.http, &blobs, &what, context.meter, context.cancel).await?;
    let license = catalogue::find_by_sha256(&file.sha256).map(|entry| entry.license.clone());
    let files = vec![file];
    Ok(Delivery { name, source: SourceKind::Url, revision: revision_of(&files), license, files })
}

/// The last part of the address, which must be a GGUF file's name.
fn file_name(url: &Url) -> Result<String, Problem> {
    let last = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or("");
    let plain = last.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if last.len() > ".gguf".len() && last.ends_with(".gguf") && plain {
        return Ok(last.to_owned());
    }
    Err(Problem::error(ProblemCode::InvalidValue, "this address is not that of a GGUF file", "该网址不是 GGUF 文件")
        .file(url)
        .found(last)
        .expected("an address that ends with NAME.gguf")
        .fix(
            "on a Hugging Face page, copy the address of the download button of one .gguf file",
            "请在模型页面复制某个 .gguf 文件“下载”按钮的网址",
        ))
}
