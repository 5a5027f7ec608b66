//! `train`: queues a job and follows it.

use std::path::PathBuf;

use clap::Args;

use super::recipe;
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
}

impl Train {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        let ui = session.ui;
        if self.dry_check {
            return recipe::check(session, &self.recipe).await;
        }
        let job = recipe::create(session, &self.recipe, false).await?;
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
