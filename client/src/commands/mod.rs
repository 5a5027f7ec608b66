//! One file a verb. Each has its arguments and a `run` that reads from top to bottom; to add a verb, add a file, a
//! variant here, and the Chinese of its help to `help_zh.rs` (a test names what is missing).

mod chat;
mod daemon;
mod data;
mod doctor;
mod estimate;
mod export;
mod generate;
mod jobs;
mod models;
mod recipe;
mod train;
mod validate;

use clap::Subcommand;

use crate::failure::Result;
use crate::session::Session;
use crate::ui::Report;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check this machine, with a fix for what is wrong
    Doctor,
    /// Find, fetch, list, verify and remove base models
    #[command(subcommand)]
    Models(models::Models),
    /// Check, preview and generate training data
    #[command(subcommand)]
    Data(data::Data),
    /// Check recipes and print their schema
    #[command(subcommand)]
    Recipe(recipe::Recipe),
    /// Train a model as a recipe says
    Train(train::Train),
    /// List, watch, cancel and resume training jobs
    #[command(subcommand)]
    Jobs(jobs::Jobs),
    /// Compare the tuned model with its base on held-out rows
    Validate(validate::Validate),
    /// Write the result in a format that other tools load
    Export(export::Export),
    /// Answer a file of prompts
    Generate(generate::Generate),
    /// Talk with a model
    Chat(chat::Chat),
    /// Start, stop and look at the daemon
    #[command(subcommand)]
    Daemon(daemon::DaemonCommand),
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        match self {
            Self::Doctor => doctor::run(session).await,
            Self::Models(command) => command.run(session).await,
            Self::Data(command) => command.run(session).await,
            Self::Recipe(command) => command.run(session).await,
            Self::Train(command) => command.run(session).await,
            Self::Jobs(command) => command.run(session).await,
            Self::Validate(command) => command.run(session).await,
            Self::Export(command) => command.run(session).await,
            Self::Generate(command) => command.run(session).await,
            Self::Chat(command) => command.run(session).await,
            Self::Daemon(command) => command.run(session).await,
        }
    }
}

/// A new id for a call that changes something; sent again, the daemon does it once.
fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
