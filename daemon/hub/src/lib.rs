//! Base models: where they come from, how they get here whole, and where they lie.
//!
//! This is the only crate that makes outbound HTTP connections. A pull tries its [sources](SourceKind) in order and
//! keeps the reason why each was left; what arrives is verified, flushed to the disk and only then named.

mod catalogue;
mod disk;
mod download;
mod hash;
mod http;
mod hub_cache;
mod name;
mod order;
mod progress;
mod search;
mod selection;
mod settings;
mod sources;
mod store;
#[cfg(test)]
mod testing;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use justtrain_worker_api::{Problem, ProblemCode, Text};
use tokio::sync::watch;

pub use crate::catalogue::known_models;
pub use crate::name::ModelName;
pub use crate::progress::PullProgress;
pub use crate::search::{Findings, FoundModel, OfferedModel};
pub use crate::selection::Selection;
pub use crate::settings::Settings;
pub use crate::sources::SourceKind;
pub use crate::store::{ModelFormat, StoredFile, StoredModel};
pub use crate::verify::VerifiedFile;

use crate::http::{Http, HttpError, Patience};
use crate::hub_cache::HubCache;
use crate::order::{Choice, Order, reason};
use crate::progress::{Cancel, Meter};
use crate::sources::{Context, Source, Wanted};
use crate::store::Store;

/// What to pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// A repository name, a catalogue name such as `smollm2`, a web address, or a path.
    pub model: String,
    /// Only this source; else all in order.
    pub source: Option<SourceKind>,
    pub selection: Selection,
    /// The name that a model without a repository gets; by default that of its file or folder.
    pub name: Option<ModelName>,
    /// The person agrees to the model's terms, where it has such.
    pub accept_license: bool,
}

/// A model that a pull brought, or found here already.
#[derive(Debug, Clone)]
pub struct PulledModel {
    pub model: StoredModel,
    /// The terms that were accepted, then one line for each source that was asked or tried: what it has, or why it was
    /// left.
    pub attempts: Vec<Text>,
}

/// The store of models and the way into it.
#[derive(Debug, Clone)]
pub struct Hub {
    store: Store,
    /// What Hugging Face's own tools have fetched.
    cache: Option<HubCache>,
    settings: Settings,
    patience: Patience,
}

impl Hub {
    /// `models_dir` need not exist yet.
    pub fn new(models_dir: PathBuf) -> Self {
        Self::with_settings(models_dir, Settings::from_env())
    }

    pub fn with_settings(models_dir: PathBuf, settings: Settings) -> Self {
        let cache = settings.hub_cache.clone().map(HubCache::new);
        Self { store: Store::new(models_dir), cache, settings, patience: Patience::default() }
    }

    /// Brings a model into the store. One that is there already is returned as it is, unless a source is named.
    ///
    /// Needs tokio's multi-thread runtime. Dropping the future is safe: partial downloads are kept.
    ///
    /// # Errors
    /// One problem for each source that was tried: `SOURCE_FAILED`, `CHECKSUM_MISMATCH`, `FILE_NOT_FOUND`, `FILE_FORMAT`.
    /// `DISK_FULL` and `CANCELLED` end the pull at once; `LICENSE_NOT_ACCEPTED` comes before anything is asked for.
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
            && request.selection == Selection::default()
            && let Some(model) = self.stored(name)
        {
            return Ok(PulledModel { model, attempts: Vec::new() });
        }
        let terms = wanted.terms();
        if let (Some((name, terms)), false) = (terms, request.accept_license) {
            return Err(vec![terms.not_accepted(name)]);
        }
        let http = Http::new(self.patience).map_err(|problem| vec![problem])?;
        let cancel = Cancel::new(cancel);
        let mut meter = Meter::new(&mut progress);
        let sources = self.sources(&wanted, request.source).map_err(|problem| vec![problem])?;
        let kinds = sources.iter().map(|source| source.kind().as_str()).collect::<Vec<_>>().join(", ");
        meter.status(Text::new(format!("asking {kinds}"), format!("正在询问 {kinds}")));
        let order = cancel.guard(Order::of(sources, &wanted, &http)).await.map_err(|problem| vec![problem])?;
        let accepted = terms.map(|(_, terms)| terms.accepted());
        let (mut attempts, mut problems): (Vec<_>, _) =
            (accepted.into_iter().chain(order.reasons).collect(), order.problems);
        for line in &attempts {
            meter.status(line.clone());
        }
        for choice in order.choices {
            let kind = choice.source.kind();
            let mut context = Context {
                store: &self.store,
                http: &http,
                selection: &request.selection,
                name: request.name.as_ref(),
                meter: &mut meter,
                cancel: &cancel,
            };
            match fetch(choice, &wanted, &mut context).await.and_then(|delivery| self.store.publish(delivery)) {
                Ok(model) => return Ok(PulledModel { model, attempts }),
                Err(problem) => {
                    tracing::info!(source = %kind, %problem, "source was left");
                    let problem = problem.key(kind.as_str());
                    // Another source would not have more room, nor other files.
                    if matches!(problem.code, ProblemCode::DiskFull | ProblemCode::Cancelled | ProblemCode::FileFormat)
                    {
                        return Err(vec![problem]);
                    }
                    attempts.push(reason(&problem));
                    meter.status(reason(&problem));
                    problems.push(problem);
                }
            }
        }
        Err(problems)
    }

    /// The servers that pulls ask, as kind and address.
    pub fn servers(&self) -> [(SourceKind, String); 3] {
        [
            (SourceKind::Hub, self.settings.hub_endpoint.clone()),
            (SourceKind::Mirror, self.settings.mirror_endpoint.clone()),
            (SourceKind::ModelScope, self.settings.modelscope_endpoint.clone()),
        ]
    }

    /// Whether anything answers at a server's address; any answer counts. Returns the server's clock, where it tells.
    ///
    /// # Errors
    /// `SOURCE_FAILED` after a short while without one.
    pub async fn reach(&self, address: &str) -> Result<Option<SystemTime>, Problem> {
        let invalid = |error| {
            Problem::error(ProblemCode::InvalidValue, "this is not a web address", "网址无效")
                .file(address)
                .found(error)
        };
        let url = reqwest::Url::parse(address).map_err(|error| invalid(error.to_string()))?;
        let patience = Patience { stall: self.patience.connect, ..self.patience };
        match Http::new(patience)?.get(&url, None, &reqwest::header::HeaderMap::new()).await {
            Ok(response) => Ok(http::date(response.headers())),
            Err(error @ HttpError::Unreachable(_)) => Err(error.problem(address)),
            Err(_) => Ok(None),
        }
    }

    fn sources(&self, wanted: &Wanted, only: Option<SourceKind>) -> Result<Vec<Arc<dyn Source>>, Problem> {
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

    /// Every whole model, by name: those of the store, and those of Hugging Face's cache that the store does not have.
    pub fn list(&self) -> Vec<StoredModel> {
        let mut models = self.store.list();
        let cached = self.cache.iter().flat_map(HubCache::list);
        let new: Vec<_> = cached.filter(|cached| models.iter().all(|model| model.name != cached.name)).collect();
        models.extend(new);
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    fn stored(&self, name: &ModelName) -> Option<StoredModel> {
        self.store.get(name).or_else(|| self.cache.as_ref()?.get(name))
    }

    /// The model that a person means by a name, an alias of the catalogue, or an id.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub fn get(&self, wanted: &str) -> Result<StoredModel, Problem> {
        let name = name_of(wanted)?;
        self.stored(&name).ok_or_else(|| self.store.not_found(name.as_str()))
    }

    /// The GGUF file or Hugging Face folder of a model in the store, or of one given by path. The model counts as used.
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
        let model = self.get(wanted)?;
        if model.source != SourceKind::Cache {
            self.store.touch(&model.name);
        }
        Ok(model.path)
    }

    /// Bytes that models can still take on the store's disk; `None` where the system does not tell.
    pub fn free_space(&self) -> Option<u64> {
        disk::free_space(self.store.root())
    }

    /// Deletes a model, given by id or name, with its partial downloads. Returns the bytes that were freed.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`.
    pub fn remove(&self, wanted: &str) -> Result<u64, Problem> {
        let name = name_of(wanted)?;
        if self.stored(&name).is_some_and(|model| model.source == SourceKind::Cache) {
            return Err(Problem::error(
                ProblemCode::InvalidValue,
                "this model belongs to Hugging Face's own cache, which other programs use too",
                "该模型属于 Hugging Face 的缓存，其他程序也在使用",
            )
            .found(&name)
            .fix(
                format!("remove it there: `hf cache rm model/{name}`"),
                format!("请在缓存中删除：`hf cache rm model/{name}`"),
            ));
        }
        self.store.remove(&name)
    }
}

fn name_of(wanted: &str) -> Result<ModelName, Problem> {
    match catalogue::find(wanted) {
        Some(entry) => Ok(entry.name.clone()),
        None => ModelName::from_id(wanted),
    }
}

async fn fetch(choice: Choice, wanted: &Wanted, context: &mut Context<'_, '_>) -> Result<store::Delivery, Problem> {
    let offer = match choice.offer {
        Some(offer) => offer,
        None => context.cancel.guard(choice.source.look(wanted, context.http)).await??,
    };
    choice.source.fetch(wanted, offer, context).await
}

#[cfg(test)]
mod tests;
