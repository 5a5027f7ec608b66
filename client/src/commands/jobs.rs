//! `jobs list|show|watch|cancel|resume`.

use clap::Subcommand;
use justtrain_proto::v1::{CancelJobRequest, Job, JobState, ResumeJobRequest};
use serde_json::json;

use crate::failure::Result;
use crate::session::Session;
use crate::show::{self, Table};
use crate::text::say;
use crate::ui::{Report, Ui};
use crate::{follow, json, pick, state};

#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
    /// List all jobs, newest first
    List,
    /// Show one job
    Show {
        /// A job's id, the start of its id, or `latest`
        job: String,
    },
    /// Follow a job from its first event
    Watch {
        /// A job's id, the start of its id, or `latest`
        job: String,
    },
    /// Stop a job; a running one saves a checkpoint first
    Cancel {
        /// A job's id, the start of its id, or `latest`
        job: String,
    },
    /// Queue a stopped job again; it goes on from its newest checkpoint
    Resume {
        /// A job's id, the start of its id, or `latest`
        job: String,
        /// Queue the job and return
        #[arg(long)]
        detach: bool,
    },
}

impl Jobs {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        let (ui, daemon) = (session.ui, session.connect().await?);
        match self {
            Self::List => {
                let jobs = pick::all_jobs(&daemon).await?;
                list(ui, &jobs);
                Ok(Report::ok(json!({"jobs": jobs.iter().map(|job| json::job(job, ui.lang)).collect::<Vec<_>>()})))
            }
            Self::Show { job } => {
                let job = pick::job(&daemon, &job).await?;
                details(ui, &job);
                Ok(Report::ok(json::job(&job, ui.lang)))
            }
            Self::Watch { job } => {
                let name = pick::job_name(&daemon, &job).await?;
                follow::job(session, &name).await
            }
            Self::Cancel { job } => {
                let name = pick::job_name(&daemon, &job).await?;
                let job = daemon.jobs().cancel_job(CancelJobRequest { name: name.clone() }).await?.into_inner();
                ui.line(match job.state() {
                    JobState::Cancelling => {
                        say!(ui.lang, "{name} saves a checkpoint and stops.", "{name} 正在保存检查点并停止。")
                    }
                    _ => say!(ui.lang, "{name} is cancelled.", "{name} 已取消。"),
                });
                Ok(Report::ok(json::job(&job, ui.lang)))
            }
            Self::Resume { job, detach } => {
                let name = pick::job_name(&daemon, &job).await?;
                let job = daemon.jobs().resume_job(ResumeJobRequest { name: name.clone() }).await?.into_inner();
                ui.line(say!(ui.lang, "{name} is queued again.", "{name} 已重新进入队列。"));
                if detach {
                    follow::how_to_come_back(ui, &name);
                    return Ok(Report::ok(json::job(&job, ui.lang)));
                }
                follow::job(session, &name).await
            }
        }
    }
}

fn list(ui: Ui, jobs: &[Job]) {
    if jobs.is_empty() {
        return ui.line(say!(
            ui.lang,
            "No job yet. Start one: justtrain train RECIPE",
            "还没有任务。开始一个：justtrain train 配方文件"
        ));
    }
    let header = [
        say!(ui.lang, "ID", "编号"),
        say!(ui.lang, "STATE", "状态"),
        say!(ui.lang, "STEP", "步数"),
        say!(ui.lang, "LOSS", "损失"),
        say!(ui.lang, "MODEL", "模型"),
        say!(ui.lang, "CREATED", "创建时间"),
    ];
    let mut table = Table::new(header).right_align(&[2, 3]);
    for job in jobs {
        let (step, loss) = job.progress.as_ref().map_or_else(Default::default, |progress| {
            (format!("{}/{}", progress.step, progress.total_steps), format!("{:.4}", progress.loss))
        });
        let id = show::id(&job.name).to_owned();
        table.row([
            id,
            state::state(job.state(), ui.lang),
            step,
            loss,
            show::clip(&job.model, 40),
            show::time(&job.create_time),
        ]);
    }
    ui.line(table);
}

fn details(ui: Ui, job: &Job) {
    let Job { name, model, attempt, run_dir, .. } = job;
    ui.line(ui.bold(name));
    let state = state::with_reason(job.state(), job.reason(), ui.lang);
    ui.line(say!(ui.lang, "  state:    {state}", "  状态：    {state}"));
    let recipe = job.recipe.as_ref().map_or("", |recipe| &recipe.file);
    ui.line(say!(ui.lang, "  recipe:   {recipe}", "  配方：    {recipe}"));
    ui.line(say!(ui.lang, "  model:    {model}", "  模型：    {model}"));
    ui.line(say!(ui.lang, "  attempt:  {attempt}", "  次数：    {attempt}"));
    ui.line(say!(ui.lang, "  folder:   {run_dir}", "  目录：    {run_dir}"));
    for (label, time) in [
        (say!(ui.lang, "created: ", "创建：   "), &job.create_time),
        (say!(ui.lang, "started: ", "开始：   "), &job.start_time),
        (say!(ui.lang, "ended:   ", "结束：   "), &job.end_time),
    ] {
        if time.is_some() {
            ui.line(format!("  {label} {}", show::time(time)));
        }
    }
    if let Some(progress) = &job.progress {
        let (step, total, loss) = (progress.step, progress.total_steps, progress.loss);
        let stage = progress.stage.as_ref().map(|of| format!(" ({})", show::stage(of, ui.lang))).unwrap_or_default();
        ui.line(say!(
            ui.lang,
            "  progress: step {step} of {total}{stage}, loss {loss:.4}",
            "  进度：    第 {step}/{total} 步{stage}，损失 {loss:.4}"
        ));
    }
    if let Some(result) = &job.result {
        let adapter = &result.adapter_path;
        ui.line(say!(ui.lang, "  result:   {adapter}", "  结果：    {adapter}"));
    }
    for problem in &job.problems {
        ui.problem(problem);
    }
}
