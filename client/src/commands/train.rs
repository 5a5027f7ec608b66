//! `train`: queues a job and follows it; with `--dry-run` only says what it would take.

use std::path::PathBuf;

use clap::Args;

use super::{estimate, recipe};
use crate::failure::Result;
use crate::session::Session;
use crate::text::say;
use crate::ui::Report;
use crate::{follow, json};

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// The recipe, a YAML file
    recipe: PathBuf,
    /// Queue the job and return
    #[arg(long)]
    detach: bool,
    /// Report every problem of the recipe, without training
    #[arg(long)]
    dry_check: bool,
    /// Show the memory, disk and time that it would take, without training
    #[arg(long, conflicts_with_all = ["detach", "dry_check"])]
    dry_run: bool,
    /// Start even where the estimate says that it cannot fit
    #[arg(long)]
    ignore_estimate: bool,
}

impl Train {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        let ui = session.ui;
        if self.dry_check {
            return recipe::check(session, &self.recipe).await;
        }
        if self.dry_run {
            return estimate::run(session, &self.recipe).await;
        }
        let job = recipe::create(session, &self.recipe, self.ignore_estimate).await?;
        for problem in &job.problems {
            ui.problem(problem);
        }
        let name = &job.name;
        ui.line(say!(ui.lang, "Job {name} is queued.", "任务 {name} 已进入队列。"));
        if self.detach {
            follow::how_to_come_back(ui, &job.name);
            return Ok(Report::ok(json::job(&job, ui.lang)));
        }
        follow::job(session, &job.name).await
    }
}
