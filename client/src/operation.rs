//! Follows an operation (pull, evaluate, export) to its end with a bar.

use indicatif::{ProgressBar, ProgressStyle};
use justtrain_proto::v1::{CancelOperationRequest, Operation, OperationState, WatchOperationRequest};

use crate::exit::Exit;
use crate::failure::{Failure, Result, is_transport};
use crate::retry::Backoff;
use crate::session::Session;
use crate::show;
use crate::text::{Lang, both};
use crate::ui::Ui;

/// Waits until `operation` is done. Ctrl-C cancels it.
///
/// # Errors
/// Why it failed, with every problem.
pub(crate) async fn follow(session: &Session, operation: Operation) -> Result<Operation> {
    let mut view = View::new(session.ui);
    let name = operation.name.clone();
    view.update(&operation);
    let done = tokio::select! {
        done = wait(session, operation, &mut view) => done,
        _ = tokio::signal::ctrl_c() => cancel(session, name).await,
    };
    view.close();
    let done = done?;
    match done.state() {
        OperationState::Succeeded => Ok(done),
        OperationState::Failed if !done.problems.is_empty() => {
            Err(Failure { exit: Exit::of_problems(&done.problems), ..Failure::invalid(done.problems) })
        }
        OperationState::Failed => {
            let name = done.name;
            Err(Failure::new(Exit::Failed, both!("{name} failed", "{name} 失败")))
        }
        _ => Err(Failure::new(Exit::Failed, both!("cancelled", "已取消"))),
    }
}

async fn cancel(session: &Session, name: String) -> Result<Operation> {
    let request = CancelOperationRequest { name };
    Ok(session.connect().await?.operations().cancel_operation(request).await?.into_inner())
}

async fn wait(session: &Session, mut operation: Operation, view: &mut View) -> Result<Operation> {
    let mut backoff = Backoff::standard();
    loop {
        let lost = match watch(session, &mut operation, view, &mut backoff).await {
            Ok(()) if is_done(&operation) => return Ok(operation),
            Ok(()) => tonic::Status::unavailable("the stream ended").into(),
            Err(failure) => failure,
        };
        if lost.exit != Exit::DaemonUnreachable || !backoff.wait().await {
            return Err(lost);
        }
    }
}

async fn watch(session: &Session, operation: &mut Operation, view: &mut View, backoff: &mut Backoff) -> Result<()> {
    let request = WatchOperationRequest { name: operation.name.clone() };
    let mut stream = session.connect().await?.operations().watch_operation(request).await?.into_inner();
    while let Some(next) = stream.message().await.map_err(|status| {
        let lost = is_transport(&status);
        let failure = Failure::from(status);
        if lost { Failure { exit: Exit::DaemonUnreachable, ..failure } } else { failure }
    })? {
        backoff.reset();
        view.update(&next);
        *operation = next;
    }
    Ok(())
}

fn is_done(operation: &Operation) -> bool {
    !matches!(operation.state(), OperationState::Running | OperationState::Unspecified)
}

struct View {
    ui: Ui,
    bar: Option<ProgressBar>,
    status: String,
    /// Tenths of the whole that have been printed, where there is no bar.
    tenths: u64,
}

impl View {
    fn new(ui: Ui) -> Self {
        let bar = ui.is_live().then(ProgressBar::new_spinner);
        Self { ui, bar, status: String::new(), tenths: 0 }
    }

    fn update(&mut self, operation: &Operation) {
        let status = self.ui.lang.pick_opt(&operation.status).to_owned();
        match &self.bar {
            Some(bar) => {
                bar.set_style(style(operation, self.ui.lang));
                bar.set_length(operation.total);
                bar.set_position(operation.done);
                bar.set_message(status);
            }
            None => {
                let tenths = (operation.done * 10).checked_div(operation.total).unwrap_or(0);
                if status != self.status && !status.is_empty() {
                    self.ui.line(&status);
                    self.status = status;
                } else if tenths > self.tenths {
                    self.ui.line(amount(operation));
                }
                self.tenths = tenths;
            }
        }
    }

    fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn amount(operation: &Operation) -> String {
    let write = |number| if operation.unit == "bytes" { show::bytes(number) } else { show::count(number) };
    format!("{} / {}", write(operation.done), write(operation.total))
}

fn style(operation: &Operation, lang: Lang) -> ProgressStyle {
    let template = match (operation.total, operation.unit.as_str(), lang) {
        (0, _, _) => "{spinner} {msg}",
        (_, "bytes", Lang::En) => {
            "{bar:30} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}"
        }
        (_, "bytes", Lang::Zh) => {
            "{bar:30} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  剩余 {eta}  {msg}"
        }
        (_, _, Lang::En) => "{bar:30} {pos}/{len}  {eta} left  {msg}",
        (_, _, Lang::Zh) => "{bar:30} {pos}/{len}  剩余 {eta}  {msg}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests;
