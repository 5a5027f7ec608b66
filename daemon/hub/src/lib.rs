//! Base models: where they come from, how they get here whole, and where they lie.
//!
//! This is the only crate that makes outbound HTTP connections. A pull tries its [sources](SourceKind) in order and
//! keeps the reason why each was left; what arrives is verified, flushed to the disk and only then named.

mod catalogue;
mod disk;
mod download;
mod hash;
mod http;
mod name;
mod progress;
mod sources;
mod store;
#[cfg(test)]
mod testing;

use std::path::PathBuf;

use justtrain_worker_api::{Problem, ProblemCode, Text};
use tokio::sync::watch;

pub use crate::name::ModelName;
pub use crate::progress::PullProgress;
pub use crate::sources::SourceKind;
pub use crate::store::{ModelFormat, StoredModel};

use crate::http::{Http, HttpError, Patience};
use crate::progress::{Cancel, Meter};
use crate::sources::{Context, Source, Wanted};
use crate::store::Store;

/// Servers and the token for one of them.
#[derive(Debug, Clone)]
pub struct Settings {
    pub hub_endpoint: String,
    /// Sent to `hub_endpoint` only.
    pub hub_token: Option<String>,
    pub mirror_endpoint: String,
}

impl Settings {
    /// `HF_ENDPOINT` and `HF_TOKEN`, as Hugging Face's own tools read them.
    pub fn from_env() -> Self {
        let filled = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        Self {
            hub_endpoint: filled("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            hub_token: filled("HF_TOKEN"),
            mirror_endpoint: "https://hf-mirror.com".to_owned(),
        }
    }
}

/// What to pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// A repository name, a catalogue name such as `smollm2`, a web address, or a path.
    pub model: String,
    /// Only this source; else all in order.
    pub source: Option<SourceKind>,
}

/// A model that a pull brought, or found here already.
#[derive(Debug, Clone)]
pub struct PulledModel {
    pub model: StoredModel,
    /// One line for each source that was tried before, with the reason it was left.
    pub attempts: Vec<Text>,
}

/// The store of models and the way into it.
#[derive(Debug, Clone)]
pub struct Hub {
    store: Store,
    settings: Settings,
    patience: Patience,
}

impl Hub {
    /// `models_dir` need not exist yet.
    pub fn new(models_dir: PathBuf) -> Self {
        Self::with_settings(models_dir, Settings::from_env())
    }

    pub fn with_settings(models_dir: PathBuf, settings: Settings) -> Self {
        Self { store: Store::new(models_dir), settings, patience: Patience::default() }
    }

    /// Brings a model into the store. One that is there already is returned as it is, unless a source is named.
    ///
    /// Needs tokio's multi-thread runtime. Dropping the future is safe: partial downloads are kept.
    ///
    /// # Errors
    /// One problem for each source that was tried: `SOURCE_FAILED`, `CHECKSUM_MISMATCH`, `FILE_NOT_FOUND`, `FILE_FORMAT`.
    /// `DISK_FULL` and `CANCELLED` end the pull at once.
    pub async fn pull(
        &self,
        request: PullRequest,
        mut progress: impl FnMut(PullProgress) + Send,
        cancel: watch::Receiver<bool>,
    ) -> Result<PulledModel, Vec<Problem>> {
        let wanted = match request.source {
            Some(SourceKind::File) => Wanted::Path(PathBuf::from(&request.model)),
            _ => Wanted::parse(&request.model).map_err(|problem| vec![problem])?,
        };
        if let (Wanted::Repository { name, .. }, None) = (&wanted, request.source)
            && let Some(model) = self.store.get(name)
        {
            return Ok(PulledModel { model, attempts: Vec::new() });
        }
        let http = Http::new(self.patience).map_err(|problem| vec![problem])?;
        let cancel = Cancel::new(cancel);
        let mut meter = Meter::new(&mut progress);
        let mut problems = Vec::new();
        for source in self.sources(&wanted, request.source).map_err(|problem| vec![problem])? {
            let mut context = Context { store: &self.store, http: &http, meter: &mut meter, cancel: &cancel };
            match source.fetch(&wanted, &mut context).await.and_then(|delivery| self.store.publish(delivery)) {
                Ok(model) => {
                    let attempts = problems.iter().map(attempt_line).collect();
                    return Ok(PulledModel { model, attempts });
                }
                Err(problem) => {
                    tracing::info!(source = %source.kind(), %problem, "source was left");
                    let ends = matches!(problem.code, ProblemCode::DiskFull | ProblemCode::Cancelled);
                    problems.push(problem.key(source.kind().as_str()));
                    if ends {
                        return Err(problems.split_off(problems.len() - 1));
                    }
                }
            }
        }
        Err(problems)
    }

    /// The servers that pulls ask, as kind and address.
    pub fn servers(&self) -> [(SourceKind, String); 2] {
        [
            (SourceKind::Hub, self.settings.hub_endpoint.clone()),
            (SourceKind::Mirror, self.settings.mirror_endpoint.clone()),
        ]
    }

    /// Whether anything answers at a server's address; any answer counts.
    ///
    /// # Errors
    /// `SOURCE_FAILED` after a short while without one.
    pub async fn reach(&self, address: &str) -> Result<(), Problem> {
        let invalid = |error| {
            Problem::error(ProblemCode::InvalidValue, "this is not a web address", "网址无效")
                .file(address)
                .found(error)
        };
        let url = reqwest::Url::parse(address).map_err(|error| invalid(error.to_string()))?;
        let patience = Patience { stall: self.patience.connect, ..self.patience };
        match Http::new(patience)?.get(&url, None, &reqwest::header::HeaderMap::new()).await {
            Err(error @ HttpError::Unreachable(_)) => Err(error.problem(address)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn sources(&self, wanted: &Wanted, only: Option<SourceKind>) -> Result<Vec<Box<dyn Source>>, Problem> {
        let mut sources = sources::all(&self.settings);
        sources.retain(|source| source.has(wanted) && only.is_none_or(|only| only == source.kind()));
        if sources.is_empty() {
            let kinds = sources::all(&self.settings);
            let can: Vec<_> =
                kinds.iter().filter(|source| source.has(wanted)).map(|source| source.kind().as_str()).collect();
            return Err(Problem::error(
                ProblemCode::InvalidValue,
                "this source does not have models of this form",
                "该来源不支持这种形式的模型",
            )
            .key("source")
            .found(only.map_or("", SourceKind::as_str))
            .expected(can.join(", ")));
        }
        Ok(sources)
    }

    /// Every whole model, by name.
    pub fn list(&self) -> Vec<StoredModel> {
        self.store.list()
    }

    /// The model that a person means by a name, an alias of the catalogue, or an id.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub fn get(&self, wanted: &str) -> Result<StoredModel, Problem> {
        let name = name_of(wanted)?;
        self.store.get(&name).ok_or_else(|| self.store.not_found(name.as_str()))
    }

    /// The GGUF file or Hugging Face folder of a model in the store, or of one given by path.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, with the command that fetches it and the names that are there.
    pub fn resolve(&self, wanted: &str) -> Result<PathBuf, Problem> {
        if let Ok(Wanted::Path(path)) = Wanted::parse(wanted) {
            return std::fs::canonicalize(&path).map_err(|error| {
                Problem::error(ProblemCode::ModelNotFound, "there is no model at this path", "该路径下没有模型")
                    .file(path.display())
                    .found(error)
                    .fix("give a .gguf file or a folder with config.json", "请指定 .gguf 文件或含 config.json 的文件夹")
            });
        }
        self.get(wanted).map(|model| model.path)
    }

    /// Deletes a model, given by id or name, with its partial downloads. Returns the bytes that were freed.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub fn remove(&self, wanted: &str) -> Result<u64, Problem> {
        self.store.remove(&name_of(wanted)?)
    }
}

fn name_of(wanted: &str) -> Result<ModelName, Problem> {
    match catalogue::find(wanted) {
        Some(entry) => Ok(entry.name.clone()),
        None => ModelName::from_id(wanted),
    }
}

/// `hub: the server cannot be reached (…)`.
fn attempt_line(problem: &Problem) -> Text {
    let source = problem.key.as_deref().unwrap_or_default();
    let found = problem.found.as_deref().unwrap_or_default();
    Text::new(
        format!("{source}: {} ({found})", problem.message.en),
        format!("{source}：{}（{found}）", problem.message.zh),
    )
}

#[cfg(test)]
mod tests;
