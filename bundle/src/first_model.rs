//! The first model: from the payload where it was shipped, else from wherever the hub finds it.

use std::fs;
use std::path::Path;

use justtrain_hub::{Hub, PullRequest, PulledModel, SourceKind};
use justtrain_worker_api::Problem;
use tokio::sync::watch;

use crate::say::Say;
use crate::versions::Home;

/// Known to the hub's catalogue.
const MODEL: &str = "smollm2";

/// Puts the model into the store unless it is there.
///
/// # Errors
/// The reason for each source that was tried.
pub(crate) async fn bring(home: &Home, shipped: &Path, say: &Say) -> Result<(), Vec<Problem>> {
    let hub = Hub::new(home.path().join("models"));
    if let Ok(model) = hub.get(MODEL) {
        say.line(format!("Model: {} is here already.", model.name), format!("模型：{} 已在本机。", model.name));
        return Ok(());
    }
    for entry in fs::read_dir(shipped).into_iter().flatten().flatten() {
        pull(&hub, entry.path().display().to_string(), Some(SourceKind::File), say).await?;
    }
    if hub.get(MODEL).is_err() {
        pull(&hub, MODEL.to_owned(), None, say).await?;
    }
    Ok(())
}

async fn pull(hub: &Hub, model: String, source: Option<SourceKind>, say: &Say) -> Result<(), Vec<Problem>> {
    let bar = say.bar(0);
    let progress = |progress: justtrain_hub::PullProgress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(say.pick(&progress.status).to_owned());
    };
    // Nobody cancels: a person who has enough ends the installer, and partial downloads are kept.
    let (_keep, cancel) = watch::channel(false);
    let pulled = hub.pull(PullRequest { model, source, ..PullRequest::default() }, progress, cancel).await;
    bar.finish_and_clear();
    let PulledModel { model, attempts } = pulled?;
    for attempt in &attempts {
        say.line(format!("  {}", attempt.en), format!("  {}", attempt.zh));
    }
    let size = model.size_bytes >> 20;
    say.line(
        format!("Model: {} ({size} MiB, {})", model.name, model.source),
        format!("模型：{}（{size} MiB，来源 {}）", model.name, model.source),
    );
    Ok(())
}
