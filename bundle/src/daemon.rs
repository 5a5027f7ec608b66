//! Starting and stopping the daemon, through the client that was installed with it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::say::Say;
use crate::versions::Home;

/// Starts the daemon of the current version; whether it runs now.
pub(crate) fn start(home: &Home, say: &Say) -> bool {
    say.step("Starting the daemon", "正在启动守护进程");
    let client = home.program("justtrain");
    let started = client_command(&client, home, "start").status();
    let runs = started.as_ref().is_ok_and(|status| status.success());
    if !runs {
        let path = client.display();
        say.warning(
            format!("The daemon did not start. See why: {path} daemon start"),
            format!("守护进程未能启动。查看原因：{path} daemon start"),
        );
    }
    runs
}

/// Stops a daemon of any version on this data folder, so that its programs can be replaced. A running job saves a
/// checkpoint and goes on after the next start.
pub(crate) fn stop(home: &Home, say: &Say) {
    let client = home.program("justtrain");
    if !client.exists() {
        return;
    }
    // Wherever it listens: it has written that down itself.
    let stopped = client_command(&client, home, "stop").env_remove("JUSTTRAIN_ADDR").stdout(Stdio::null()).status();
    if !stopped.is_ok_and(|status| status.success()) {
        say.warning("The former daemon could not be stopped.", "无法停止旧的守护进程。");
    }
}

fn client_command(client: &Path, home: &Home, verb: &str) -> Command {
    let mut command = Command::new(client);
    command.args(["daemon", verb]).env("JUSTTRAIN_HOME", home.path()).stdin(Stdio::null());
    command
}
