//! The environment checks, shown as they come in.

use std::net::SocketAddr;

use justtrain_doctor::{CheckResult, Context, Port, Server, Status, run};
use justtrain_hub::Hub;

use crate::say::Say;
use crate::versions::Home;

/// Where the daemon listens unless `JUSTTRAIN_ADDR` says otherwise.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7707);

/// Whether nothing keeps training from working.
pub(crate) async fn check(home: &Home, say: &Say) -> bool {
    let hub = Hub::new(home.path().join("models"));
    let servers = hub.servers().map(|(kind, address)| {
        let (hub, asked) = (hub.clone(), address.clone());
        let answer =
            async move { hub.reach(&asked).await.map_err(|problem| problem.found.unwrap_or(problem.message.en)) };
        Server { id: kind.as_str(), address, answer: Box::pin(answer) }
    });
    let address = std::env::var("JUSTTRAIN_ADDR").ok().and_then(|address| address.parse().ok());
    let context = Context {
        home: home.path().to_owned(),
        port: Port::Wanted(address.unwrap_or(DEFAULT_ADDRESS)),
        models: hub.list().iter().map(|model| model.name.to_string()).collect(),
        worker: home.program("justtrain-worker"),
        servers: servers.into(),
    };
    let mut fit = true;
    run(context, |result| {
        fit &= result.status != Status::Fail;
        show(&result, say);
    })
    .await;
    fit
}

fn show(result: &CheckResult, say: &Say) {
    let status = match result.status {
        Status::Pass => "PASS",
        Status::Warn => "WARN",
        Status::Fail => "FAIL",
        Status::Skip => "SKIP",
    };
    say.line(
        format!("  {status}  {}: {}", result.title.en, result.found.en),
        format!("  {status}  {}：{}", result.title.zh, result.found.zh),
    );
    if !result.fix.is_empty() {
        say.line(format!("        → {}", result.fix.en), format!("        → {}", result.fix.zh));
    }
}
