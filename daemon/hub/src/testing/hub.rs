//! A hub with one model, as the wire shows it: Hugging Face's protocol (listing, tree, paths, `resolve` with a redirect to
//! storage for large files) and ModelScope's.

use std::sync::Arc;

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{Asked, FakeServer, Reply};
use crate::hash::hex;

/// A commit's name has 40 digits.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Debug, Clone)]
pub(crate) struct FakeFile {
    pub(crate) path: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Kept in storage and named by its SHA-256; other files are in git and named by git's hash.
    pub(crate) large: bool,
}

impl FakeFile {
    pub(crate) fn small(path: &'static str, text: &str) -> Self {
        Self { path, bytes: text.as_bytes().to_vec(), large: false }
    }

    pub(crate) fn large(path: &'static str, bytes: Vec<u8>) -> Self {
        Self { path, bytes, large: true }
    }

    pub(crate) fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.bytes))
    }

    pub(crate) fn git_sha1(&self) -> String {
        hex(&Sha1::new_with_prefix(format!("blob {}\0", self.bytes.len())).chain_update(&self.bytes).finalize())
    }

    fn etag(&self) -> String {
        if self.large { self.sha256() } else { self.git_sha1() }
    }
}

/// What goes wrong: the answer to this request (and how many came before it), or `None` for the right one.
pub(crate) type Fault = dyn Fn(&Asked, usize) -> Option<Reply> + Send + Sync;

/// A hub and the storage that its large files are redirected to, which is another host.
pub(crate) struct FakeHub {
    pub(crate) server: FakeServer,
    pub(crate) storage: FakeServer,
}

impl FakeHub {
    pub(crate) async fn start(name: &'static str, files: Vec<FakeFile>) -> Self {
        Self::faulty(name, files, |_, _| None, |_, _| None).await
    }

    pub(crate) async fn faulty(
        name: &'static str,
        files: Vec<FakeFile>,
        hub_fault: impl Fn(&Asked, usize) -> Option<Reply> + Send + Sync + 'static,
        storage_fault: impl Fn(&Asked, usize) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let (files, hub_fault): (Arc<Vec<FakeFile>>, Box<Fault>) = (Arc::new(files), Box::new(hub_fault));
        let stored = files.clone();
        let storage = FakeServer::start(move |asked, before| {
            let wanted = asked.path.trim_start_matches("/storage/");
            storage_fault(asked, before).unwrap_or_else(|| match stored.iter().find(|file| file.sha256() == wanted) {
                // Storage has ETags of its own.
                Some(file) => {
                    Reply::range(asked, &file.bytes, &format!("\"s3-{wanted}\"")).header("Accept-Ranges: bytes")
                }
                None => Reply::new(404, ""),
            })
        })
        .await;
        let storage_address = storage.address.clone();
        let server = FakeServer::start(move |asked, before| {
            hub_fault(asked, before).unwrap_or_else(|| answer(name, &files, &storage_address, asked))
        })
        .await;
        Self { server, storage }
    }

    pub(crate) fn address(&self) -> &str {
        &self.server.address
    }
}

fn answer(name: &str, files: &[FakeFile], storage: &str, asked: &Asked) -> Reply {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    if path == "/api/models" {
        return Reply::new(200, json!([model(name, files)]).to_string()).header("Content-Type: application/json");
    }
    let json = |value: serde_json::Value| {
        Reply::new(200, value.to_string()).header("Content-Type: application/json").header(commit_header())
    };
    if let Some(rest) = path.strip_prefix(&format!("/api/models/{name}")) {
        return match rest.split('/').nth(1) {
            None | Some("revision") => json(model(name, files)),
            Some("tree") => json(files.iter().map(tree_entry).collect()),
            Some("paths-info") => {
                let form = reqwest::Url::parse(&format!("http://form/?{}", asked.body)).unwrap();
                let wanted =
                    |file: &&FakeFile| form.query_pairs().any(|(key, path)| key == "paths" && path == file.path);
                json(files.iter().filter(wanted).map(tree_entry).collect())
            }
            _ => not_found("EntryNotFound"),
        };
    }
    if let Some(rest) = path.strip_prefix(&format!("/{name}/resolve/")) {
        let wanted = rest.split_once('/').map_or("", |(_, path)| path);
        return match files.iter().find(|file| file.path == wanted) {
            Some(file) => resolve(file, storage, asked),
            None => not_found("EntryNotFound"),
        };
    }
    modelscope(name, files, path, query, asked).unwrap_or_else(|| not_found("RepoNotFound"))
}

fn model(name: &str, files: &[FakeFile]) -> serde_json::Value {
    let sibling = |file: &FakeFile| match file.large {
        true => json!({
            "rfilename": file.path, "size": file.bytes.len(), "blobId": "0".repeat(40),
            "lfs": {"sha256": file.sha256(), "size": file.bytes.len(), "pointerSize": 134},
        }),
        false => json!({"rfilename": file.path, "size": file.bytes.len(), "blobId": file.git_sha1()}),
    };
    json!({
        "_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": false, "gated": false, "disabled": false,
        "downloads": 42, "likes": 1, "tags": ["license:apache-2.0"], "cardData": {"license": "apache-2.0"},
        "safetensors": {"parameters": {"BF16": 1000}, "total": 1000},
        "siblings": files.iter().map(sibling).collect::<Vec<_>>(),
    })
}

fn tree_entry(file: &FakeFile) -> serde_json::Value {
    let mut entry = json!({"type": "file", "path": file.path, "size": file.bytes.len(), "oid": file.git_sha1()});
    if file.large {
        entry["lfs"] = json!({"oid": file.sha256(), "size": file.bytes.len(), "pointerSize": 134});
    }
    entry
}

fn resolve(file: &FakeFile, storage: &str, asked: &Asked) -> Reply {
    let linked = |reply: Reply| {
        reply
            .header(commit_header())
            .header(format!("X-Linked-Size: {}", file.bytes.len()))
            .header(format!("X-Linked-ETag: \"{}\"", file.etag()))
    };
    if file.large {
        let location = format!("Location: {storage}/storage/{}", file.sha256());
        return linked(Reply::new(302, "")).header(location);
    }
    linked(Reply::range(asked, &file.bytes, &format!("\"{}\"", file.etag())))
}

fn modelscope(name: &str, files: &[FakeFile], path: &str, query: &str, asked: &Asked) -> Option<Reply> {
    let details = json!({"id": name, "license": "apache-2.0", "downloads": 7, "file_size": 2000, "gated": false});
    if path == "/openapi/v1/models" {
        return Some(Reply::new(
            200,
            json!({"success": true, "data": {"models": [details], "total_count": 1}}).to_string(),
        ));
    }
    if path == format!("/openapi/v1/models/{name}") {
        return Some(Reply::new(200, json!({"success": true, "data": details}).to_string()));
    }
    match path.strip_prefix(&format!("/api/v1/models/{name}/repo"))? {
        "/files" => {
            let entry = |file: &FakeFile| {
                json!({
                    "Name": file.path, "Path": file.path, "Size": file.bytes.len(), "Sha256": file.sha256(),
                    "Type": "blob", "IsLFS": file.large,
                })
            };
            let listed: Vec<_> = files.iter().map(entry).chain([json!({"Path": "onnx", "Type": "tree"})]).collect();
            Some(Reply::new(200, json!({"Code": 200, "Success": true, "Data": {"Files": listed}}).to_string()))
        }
        "" => {
            let wanted = query.split('&').find_map(|pair| pair.strip_prefix("FilePath="))?;
            let file = files.iter().find(|file| file.path == wanted)?;
            // What is served without a redirect knows no ranges.
            Some(match file.large {
                true => Reply::range(asked, &file.bytes, "\"ms\""),
                false => Reply::new(200, &*file.bytes),
            })
        }
        _ => None,
    }
}

fn commit_header() -> String {
    format!("X-Repo-Commit: {COMMIT}")
}

fn not_found(code: &str) -> Reply {
    Reply::new(404, json!({"error": "Not Found"}).to_string()).header(format!("X-Error-Code: {code}"))
}
