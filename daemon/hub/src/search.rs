//! Looking for models, and at what the servers have under a name, before anything is fetched.

use justtrain_worker_api::{Problem, ProblemCode};

use crate::catalogue::{self, CatalogueEntry, WheelEntry};
use crate::hash::Digest;
use crate::http::Http;
use crate::sources::{self, Listing, Repository, SourceKind};
use crate::{Hub, ModelName, Selection, StoredFile};

/// A model as a server's search describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundModel {
    pub name: ModelName,
    pub source: SourceKind,
    pub license: Option<String>,
    pub downloads: Option<u64>,
    /// Of the weights, where the server tells.
    pub size_bytes: Option<u64>,
    pub parameters: Option<u64>,
    /// Its terms must be accepted first.
    pub gated: bool,
}

/// What searches have brought.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Each server's own order, the hub's first.
    pub models: Vec<FoundModel>,
    /// Why a server brought nothing.
    pub problems: Vec<Problem>,
}

/// What one server has under a name, and what a pull from it would fetch.
#[derive(Debug, Clone)]
pub struct OfferedModel {
    pub name: ModelName,
    pub source: SourceKind,
    pub revision: String,
    pub license: Option<String>,
    pub downloads: Option<u64>,
    pub gated: bool,
    /// With an empty SHA-256 where the server does not tell it.
    pub files: Vec<StoredFile>,
}

impl OfferedModel {
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl Hub {
    /// Asks the hub, or its mirror where the hub does not answer, and ModelScope; then come those that the catalogue
    /// knows a Python wheel of.
    ///
    /// # Errors
    /// Why each server brought nothing, when none has answered and the catalogue has nothing either.
    pub async fn search(&self, query: &str, limit: usize) -> Result<Findings, Vec<Problem>> {
        let http = Http::new(self.patience).map_err(|problem| vec![problem])?;
        let [hub, mirror, modelscope] = sources::repositories(&self.settings);
        let huggingface = async {
            let first = hub.search(query, limit, &http).await.map_err(|problem| named(problem, hub.kind()));
            match first {
                Ok(models) => (models, Vec::new(), true),
                Err(problem) => match mirror.search(query, limit, &http).await {
                    Ok(models) => (models, vec![problem], true),
                    Err(second) => (Vec::new(), vec![problem, named(second, mirror.kind())], false),
                },
            }
        };
        let (huggingface, modelscope_found) = tokio::join!(huggingface, modelscope.search(query, limit, &http));
        let (mut models, mut problems, mut answered) = huggingface;
        match modelscope_found {
            Ok(found) => {
                models.extend(found);
                answered = true;
            }
            Err(problem) => problems.push(named(problem, modelscope.kind())),
        }
        models.extend(catalogue::search(query).take(limit).filter_map(in_a_wheel).map(|(entry, wheel)| FoundModel {
            name: entry.name.clone(),
            source: SourceKind::Wheel,
            license: Some(entry.license.clone()),
            downloads: None,
            size_bytes: Some(wheel.size),
            parameters: None,
            gated: entry.terms.is_some(),
        }));
        if answered || !models.is_empty() { Ok(Findings { models, problems }) } else { Err(problems) }
    }

    /// What the sources have under `name`: the first that has it, in the order of a pull.
    ///
    /// # Errors
    /// Why each server does not have it.
    pub async fn look_up(&self, name: &str, selection: &Selection) -> Result<OfferedModel, Vec<Problem>> {
        let http = Http::new(self.patience).map_err(|problem| vec![problem])?;
        let name = crate::name_of(name).map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        for server in sources::repositories(&self.settings) {
            let listed = server.list(&name, &http).await;
            match listed.and_then(|listing| offered(&*server, &name, &listing, selection)) {
                Ok(offered) => return Ok(offered),
                // The files are known, and none of them will do: other servers have the same.
                Err(problem) if problem.code == ProblemCode::FileFormat => return Err(vec![problem]),
                Err(problem) => problems.push(named(problem, server.kind())),
            }
        }
        let (entry, wheel) = catalogue::find(name.as_str()).and_then(in_a_wheel).ok_or(problems)?;
        Ok(OfferedModel {
            name,
            source: SourceKind::Wheel,
            revision: wheel.revision(),
            license: Some(entry.license.clone()),
            downloads: None,
            gated: entry.terms.is_some(),
            files: vec![StoredFile {
                path: wheel.file.clone(),
                size: wheel.size,
                sha256: wheel.sha256.clone(),
                blob: None,
            }],
        })
    }
}

fn in_a_wheel(entry: &CatalogueEntry) -> Option<(&CatalogueEntry, &WheelEntry)> {
    Some((entry, entry.wheel.as_ref()?))
}

fn offered(
    server: &dyn Repository,
    name: &ModelName,
    listing: &Listing,
    selection: &Selection,
) -> Result<OfferedModel, Problem> {
    let file = |file: &sources::RemoteFile| StoredFile {
        path: file.path.clone(),
        size: file.size.unwrap_or(0),
        sha256: match &file.digest {
            Some(Digest::Sha256(sha256)) => sha256.clone(),
            _ => String::new(),
        },
        blob: None,
    };
    Ok(OfferedModel {
        name: name.clone(),
        source: server.kind(),
        revision: listing.revision.clone(),
        license: listing.license.clone(),
        downloads: listing.downloads,
        gated: listing.gated,
        files: listing.choose(name, selection)?.into_iter().map(file).collect(),
    })
}

fn named(problem: Problem, source: SourceKind) -> Problem {
    problem.key(source.as_str())
}
