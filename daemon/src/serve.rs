//! Starts everything, and ends it in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use justtrain_hub::Hub;
use justtrain_jobs::{Jobs, Operations, Store, WorkerProgram};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;

use crate::config::Config;
use crate::grpc::{self, Daemon};
use crate::{home, logging};

/// How long open streams may take to end once the queue has.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(crate) fn run(config: Config) -> Result<()> {
    std::fs::create_dir_all(&config.home).with_context(|| format!("{} cannot be made", config.home.display()))?;
    let _lock = home::lock(&config.home)?;
    logging::start(&config.home)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(config))
}

async fn serve(config: Config) -> Result<()> {
    let token = home::token(&config.home)?;
    let store = Arc::new(Store::open(&config.home.join("justtrain.db")).context("the database cannot be opened")?);
    let recovered = store.recover().context("the database cannot be put in order")?;
    let jobs = Jobs::new(store.clone(), WorkerProgram::find(), config.home.join("jobs"));
    let shutdown = watch::Sender::new(false);
    let listener =
        TcpListener::bind(config.address).await.with_context(|| format!("cannot listen on {}", config.address))?;
    let address = listener.local_addr()?;
    let daemon = Daemon::new(
        config.home.clone(),
        address,
        jobs.clone(),
        Operations::new(store)?,
        Hub::new(config.home.join("models")),
        shutdown.clone(),
    );
    home::announce(&config.home, address)?;
    tracing::info!(%address, home = %config.home.display(), recovered = recovered.len(), "the daemon listens");

    let queue = tokio::spawn({
        let jobs = jobs.clone();
        async move { jobs.run().await }
    });
    tokio::spawn(stop_on_signal(shutdown.clone()));
    let mut asked = shutdown.subscribe();
    let queue_over = watch::Sender::new(false);
    let mut over = queue_over.subscribe();
    let ended = grpc::router(daemon, &token, &config.home).serve_with_incoming_shutdown(
        TcpListenerStream::new(listener),
        async move {
            let _ = asked.wait_for(|stop| *stop).await;
            jobs.shut_down();
            // Watchers hold their streams open as long as jobs run: the queue decides when it is over.
            let _ = queue.await;
            queue_over.send_replace(true);
        },
    );
    // Streams that clients keep open do not keep the daemon: once the queue is done, so is it.
    let result = tokio::select! {
        result = ended => result.context("the server failed"),
        () = async {
            if over.wait_for(|over| *over).await.is_err() {
                // The server has failed, and says why.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LAST_WORDS).await;
        } => Ok(()),
    };
    home::withdraw(&config.home);
    tracing::info!("the daemon ends");
    result
}

/// The first signal lets the running job save; the second ends at once.
async fn stop_on_signal(shutdown: watch::Sender<bool>) {
    loop {
        signal().await;
        if shutdown.send_replace(true) {
            tracing::warn!("second signal: the daemon ends at once");
            std::process::exit(1);
        }
        tracing::info!("the daemon was asked to end; a running job saves first");
    }
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

#[cfg(not(unix))]
async fn signal() {
    let _ = tokio::signal::ctrl_c().await;
}
