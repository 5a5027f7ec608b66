//! The installer: unpacks JustTrain for one user, checks the machine, brings the first model, starts the daemon.
//!
//! Every step can be cut at any moment: programs appear whole under `versions/V` or not at all, and a second run goes
//! on from there. Training data, models and jobs are never touched by an upgrade or an uninstall.

mod daemon;
mod first_model;
mod machine;
mod payload;
mod say;
mod uninstall;
mod versions;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use justtrain_worker_api::{Problem, ProblemCode};

use crate::say::Say;
use crate::versions::{Home, Place};

/// Installs JustTrain for this user. 为当前用户安装 JustTrain。
#[derive(Debug, Parser)]
#[command(name = "install", version)]
struct Args {
    /// Folder to install into; by default the user's data folder. 安装目录，默认为用户数据目录。
    #[arg(long, env = "JUSTTRAIN_HOME", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The archive to install; by default payload.zip beside this program. 安装包，默认为本程序旁的 payload.zip。
    #[arg(long, value_name = "ZIP")]
    from: Option<PathBuf>,
    /// Remove the programs; data, models and jobs stay. 卸载程序，保留数据、模型和任务。
    #[arg(long)]
    uninstall: bool,
    /// With --uninstall: remove data, models and jobs too. 与 --uninstall 同用：数据、模型和任务也一并删除。
    #[arg(long, requires = "uninstall")]
    purge: bool,
    /// Install for root although started through sudo. 即使通过 sudo 启动，也为 root 安装。
    #[arg(long)]
    allow_root: bool,
    /// Wait for Enter at the end, for windows that close by themselves. 结束时等待回车键，适用于会自动关闭的窗口。
    #[arg(long)]
    wait: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let say = Say::from_env();
    let wait = args.wait;
    let code = match run(args, &say) {
        Ok(true) => ExitCode::SUCCESS,
        // Installed, and a check says that training cannot work yet.
        Ok(false) => ExitCode::from(2),
        Err(problems) => {
            problems.iter().for_each(|problem| say.problem(problem));
            ExitCode::FAILURE
        }
    };
    if wait {
        say.wait_for_enter();
    }
    code
}

/// Whether everything that was checked is fine.
fn run(args: Args, say: &Say) -> Result<bool, Vec<Problem>> {
    check_user(args.allow_root, say).map_err(|problem| vec![problem])?;
    let home = Home::find(args.dir.as_deref()).map_err(|problem| vec![problem])?;
    if args.uninstall {
        return uninstall::uninstall(&home, args.purge, say).map(|()| true).map_err(|problem| vec![problem]);
    }
    let archive = match args.from {
        Some(archive) => archive,
        None => beside_this_program("payload.zip").map_err(|problem| vec![problem])?,
    };
    install(&home, &archive, say)
}

fn install(home: &Home, archive: &Path, say: &Say) -> Result<bool, Vec<Problem>> {
    let only = |problem| vec![problem];
    let payload = payload::open(archive).map_err(only)?;
    let _lock = home.lock().map_err(only)?;
    say.step(
        format!("Installing JustTrain {} into {}", payload.version, home.path().display()),
        format!("正在把 JustTrain {} 安装到 {}", payload.version, home.path().display()),
    );
    let version = payload.version.clone();
    let unpacked = payload.unpack(home, say).map_err(only)?;
    daemon::stop(home, say);
    let place = home.place(&version, unpacked.programs).map_err(only)?;
    let command = home.link_command(say);

    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        only(Problem::error(ProblemCode::Internal, "cannot start the checks", "无法启动检查").found(error))
    })?;
    let model = runtime.block_on(first_model::bring(home, unpacked.models.path(), say));
    drop(unpacked.models);
    say.step("Checking this machine", "正在检查本机环境");
    let fit = runtime.block_on(machine::check(home, say));
    let running = daemon::start(home, say);
    if let Err(problems) = &model {
        say.warning("No model yet. The sources that were tried:", "还没有模型。已尝试的来源：");
        problems.iter().for_each(|problem| say.problem(problem));
    }
    next_steps(home, &place, &command, say);
    Ok(fit && model.is_ok() && running)
}

fn next_steps(home: &Home, place: &Place, command: &str, say: &Say) {
    if let Place::Upgraded { from } = place {
        say.line(format!("Upgraded from {from}."), format!("已从 {from} 升级。"));
    }
    let recipe = home.current().join("recipes/quickstart.yaml");
    let uninstall = home.current().join("bin/install");
    let (recipe, uninstall) = (recipe.display(), uninstall.display());
    say.step("JustTrain is installed. Next:", "JustTrain 安装完成。接下来：");
    if !home.is_default() {
        let path = home.path().display();
        say.line(format!("  export JUSTTRAIN_HOME={path}"), format!("  export JUSTTRAIN_HOME={path}"));
    }
    say.line(
        format!(
            "  {command} chat --model smollm2\n      talk to the model\n  \
             {command} data generate numbers --count 1000 --seed 7 --output numbers.json\n      make practice data\n  \
             cp {recipe} . && {command} train quickstart.yaml\n      train on it, some minutes\n  \
             {command} validate latest\n      before and after, side by side\n  \
             {uninstall} --uninstall\n      remove it; your data stays",
        ),
        format!(
            "  {command} chat --model smollm2\n      与模型对话\n  \
             {command} data generate numbers --count 1000 --seed 7 --lang zh --output numbers.json\n      生成练习数据\n  \
             cp {recipe} . && {command} train quickstart.yaml\n      用它训练，需要几分钟\n  \
             {command} validate latest\n      对比训练前后的效果\n  \
             {uninstall} --uninstall\n      卸载，保留数据",
        ),
    );
}

/// `sudo ./install` would install for root, where the person does not find it. A container's root is the person.
fn check_user(allow_root: bool, say: &Say) -> Result<(), Problem> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if std::env::var_os("SUDO_USER").is_some() && !allow_root {
        return Err(Problem::error(
            ProblemCode::InvalidValue,
            "JustTrain is installed per user and needs no root rights",
            "JustTrain 为每个用户单独安装，不需要 root 权限",
        )
        .fix(
            "run it again without sudo, or with --allow-root to install for root",
            "请去掉 sudo 重新运行；如确需为 root 安装，请加 --allow-root",
        ));
    }
    say.line("Note: this is for the user root.", "提示：当前用户为 root。");
    Ok(())
}

fn beside_this_program(name: &str) -> Result<PathBuf, Problem> {
    let here = std::env::current_exe().and_then(std::fs::canonicalize).map(|program| program.with_file_name(name));
    match here {
        Ok(path) if path.is_file() => Ok(path),
        _ => Err(Problem::error(
            ProblemCode::FileNotFound,
            format!("{name} is not beside this program"),
            format!("本程序旁没有 {name}"),
        )
        .fix(
            "unpack the whole downloaded archive, then start install from the unpacked folder",
            "请先完整解压下载的压缩包，再在解压后的文件夹中运行 install",
        )),
    }
}
