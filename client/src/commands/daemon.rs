//! `daemon start|stop|status`: the daemon on this machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Subcommand;
use justtrain_proto::v1::{GetInfoRequest, GetInfoResponse, ShutdownRequest};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::exit::Exit;
use crate::failure::{Failure, Result, is_transport};
use crate::session::{DaemonFile, Session};
use crate::show;
use crate::text::{both, say};
use crate::ui::Report;

/// A first start makes the data folder and the database.
const LONGEST_START: Duration = Duration::from_secs(30);
/// A running job saves a checkpoint before the daemon ends.
const LONGEST_STOP: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Start the daemon in the background
    Start,
    /// Stop the daemon; a running job saves a checkpoint first
    Stop,
    /// Show whether the daemon runs, where, and what it does
    Status,
}

impl DaemonCommand {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        match self {
            Self::Start => start(session).await,
            Self::Stop => stop(session).await,
            Self::Status => status(session).await,
        }
    }
}

async fn start(session: &Session) -> Result<Report> {
    let ui = session.ui;
    if session.daemon_holds_lock() {
        let info = ready(session, None).await?;
        let (address, pid) = (session.address(), info.pid);
        ui.line(say!(
            ui.lang,
            "The daemon already runs at {address} (pid {pid}).",
            "守护进程已在 {address} 运行（进程号 {pid}）。"
        ));
        return Ok(Report::ok(info_json(session, &info)));
    }
    let log = session.home.join("logs").join("start.log");
    let mut child = spawn(session, &log)?;
    let info = ready(session, Some((&mut child, &log))).await?;
    let (address, pid) = (session.address(), info.pid);
    ui.line(say!(ui.lang, "The daemon runs at {address} (pid {pid}).", "守护进程已启动：{address}（进程号 {pid}）。"));
    Ok(Report::ok(info_json(session, &info)))
}

/// Starts `justtraind` so that it outlives us and our terminal.
fn spawn(session: &Session, log: &Path) -> Result<Child> {
    let program = program()?;
    let failed = |error| Failure::file(log, &error);
    std::fs::create_dir_all(log.with_file_name("")).map_err(failed)?;
    let out = File::create(log).map_err(failed)?;
    let err = out.try_clone().map_err(failed)?;
    let mut command = Command::new(&program);
    command.env("JUSTTRAIN_HOME", &session.home).stdin(Stdio::null()).stdout(out).stderr(err);
    if let Some(address) = session.given_address() {
        command.env("JUSTTRAIN_ADDR", address);
    }
    detach(&mut command);
    command.spawn().map_err(|error| {
        let program = program.display();
        Failure::new(Exit::Failed, both!("cannot start {program}: {error}", "无法启动 {program}：{error}"))
    })
}

#[cfg(unix)]
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only `setsid` is called, which is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    }
}

#[cfg(windows)]
fn detach(command: &mut Command) {
    use std::os::windows::process::CommandExt;
    const DETACHED_PROCESS: u32 = 0x0000_0008;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
    command.creation_flags(DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP);
}

/// The `justtraind` that was installed beside this program.
fn program() -> Result<PathBuf> {
    let name = format!("justtraind{}", std::env::consts::EXE_SUFFIX);
    let sibling = std::env::current_exe().and_then(std::fs::canonicalize).ok().map(|own| own.with_file_name(&name));
    sibling.filter(|path| path.is_file()).ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            both!(
                "{name} is not beside this program; install JustTrain again",
                "本程序旁没有 {name}；请重新安装 JustTrain"
            ),
        )
    })
}

/// Waits until the daemon that holds the lock answers; with `child`, until that very process does.
async fn ready(session: &Session, mut child: Option<(&mut Child, &Path)>) -> Result<GetInfoResponse> {
    let start = Instant::now();
    loop {
        if let Some((child, log)) = &mut child
            && let Ok(Some(status)) = child.try_wait()
        {
            return Err(ended(&status.to_string(), log));
        }
        // The file may be left over from the daemon before.
        let written = DaemonFile::read(&session.home);
        let is_ours = written.is_some_and(|file| child.as_ref().is_none_or(|(child, _)| child.id() == file.pid));
        let problem = match is_ours {
            true => match info(session).await {
                Ok(info) => return Ok(info),
                Err(failure) if failure.exit != Exit::DaemonUnreachable => return Err(failure),
                Err(failure) => failure,
            },
            false => Failure::unreachable(&session.address(), &session.home),
        };
        if start.elapsed() > LONGEST_START {
            return Err(problem);
        }
        sleep(POLL).await;
    }
}

/// The daemon ended while it started; its last lines say why.
fn ended(status: &str, log: &Path) -> Failure {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(5).collect();
    let lines = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
    let log = log.display();
    Failure::new(
        Exit::Failed,
        both!(
            "the daemon ended at once ({status}); from {log}:\n{lines}",
            "守护进程启动后立即退出（{status}）；{log} 中写道：\n{lines}"
        ),
    )
}

async fn stop(session: &Session) -> Result<Report> {
    let ui = session.ui;
    if session.given_address().is_none() && !session.daemon_holds_lock() {
        ui.line(say!(ui.lang, "The daemon does not run.", "守护进程没有运行。"));
        return Ok(Report::ok(json!({"running": false})));
    }
    let daemon = session.connect().await?;
    let info = daemon.system().get_info(GetInfoRequest {}).await?.into_inner();
    match daemon.system().shutdown(ShutdownRequest {}).await {
        // It may be gone before its answer is out.
        Err(status) if !is_transport(&status) => return Err(status.into()),
        _ => {}
    }
    // A daemon elsewhere holds no lock that we could see: it is gone when it no longer answers.
    let is_local = std::fs::canonicalize(&info.data_dir)
        .is_ok_and(|data| std::fs::canonicalize(&session.home).is_ok_and(|home| home == data));
    let start = Instant::now();
    let pid = info.pid;
    while if is_local { session.daemon_holds_lock() } else { session.connect().await.is_ok() } {
        if start.elapsed() > LONGEST_STOP {
            return Err(Failure::new(
                Exit::Failed,
                both!("the daemon (pid {pid}) is still saving", "守护进程（进程号 {pid}）仍在保存"),
            ));
        }
        sleep(POLL).await;
    }
    ui.line(say!(ui.lang, "The daemon has stopped.", "守护进程已停止。"));
    Ok(Report::ok(json!({"running": false, "pid": pid})))
}

async fn status(session: &Session) -> Result<Report> {
    let ui = session.ui;
    let info = info(session).await?;
    let GetInfoResponse { version, data_dir, pid, running_jobs, queued_jobs, .. } = &info;
    let (address, time) = (session.address(), show::duration(info.uptime_seconds as f64, ui.lang));
    ui.line(say!(
        ui.lang,
        "justtraind {version} at {address}, pid {pid}, for {time}",
        "justtraind {version}，地址 {address}，进程号 {pid}，已运行 {time}"
    ));
    ui.line(say!(ui.lang, "  data folder: {data_dir}", "  数据目录：{data_dir}"));
    ui.line(say!(
        ui.lang,
        "  jobs: {running_jobs} running, {queued_jobs} queued",
        "  任务：{running_jobs} 个运行中，{queued_jobs} 个排队"
    ));
    Ok(Report::ok(info_json(session, &info)))
}

async fn info(session: &Session) -> Result<GetInfoResponse> {
    Ok(session.connect().await?.system().get_info(GetInfoRequest {}).await?.into_inner())
}

fn info_json(session: &Session, info: &GetInfoResponse) -> Value {
    json!({
        "running": true,
        "address": session.address(),
        "pid": info.pid,
        "version": info.version,
        "api_versions": info.api_versions,
        "data_dir": info.data_dir,
        "uptime_seconds": info.uptime_seconds,
        "running_jobs": info.running_jobs,
        "queued_jobs": info.queued_jobs,
    })
}
