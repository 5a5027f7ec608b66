//! `export`: a PEFT adapter or a merged model, for other tools.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use justtrain_proto::v1::operation::Result as OperationResult;
use justtrain_proto::v1::{CreateExportRequest, ExportFormat};

use super::request_id;
use crate::failure::{Failure, Result};
use crate::pick::ModelArgs;
use crate::session::{Session, absolute_text};
use crate::show;
use crate::text::{both, say};
use crate::ui::Report;
use crate::{json, operation};

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A job's id, the start of its id, or `latest`
    #[arg(conflicts_with_all = ["model", "adapter"])]
    job: Option<String>,
    /// A model in the store, or a path
    #[arg(long)]
    model: Option<String>,
    /// A PEFT adapter folder for --model
    #[arg(long, value_name = "DIR", requires = "model")]
    adapter: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// Folder to write; by default `exports/FORMAT` in the job's folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// The adapter alone, as Hugging Face PEFT loads it
    Peft,
    /// A whole Hugging Face model with the adapter folded in
    Merged,
}

impl Export {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        let ui = session.ui;
        if self.job.is_none() && self.output.is_none() {
            return Err(Failure::usage(both!(
                "name a job, or a --model and an --output folder",
                "请指定任务，或同时指定 --model 与 --output"
            )));
        }
        let daemon = session.connect().await?;
        let chosen = ModelArgs { job: self.job, model: self.model, adapter: self.adapter };
        let format = match self.format {
            Format::Peft => ExportFormat::Peft,
            Format::Merged => ExportFormat::Merged,
        };
        let request = CreateExportRequest {
            request_id: request_id(),
            model: Some(chosen.selector_or_latest(&daemon).await?),
            format: format.into(),
            output_path: absolute_text(self.output.as_deref())?,
        };
        let started = daemon.exports().create_export(request).await?.into_inner();
        let done = operation::follow(session, started).await?;
        if let Some(OperationResult::Export(export)) = &done.result {
            let (format, path, size) = (&export.format, &export.path, show::bytes(export.size_bytes));
            ui.line(say!(ui.lang, "{format}: {path} ({size})", "{format}：{path}（{size}）"));
        }
        Ok(Report::ok(json::operation(&done, ui.lang)))
    }
}
