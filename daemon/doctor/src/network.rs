//! Proxies, the servers that models come from, and the daemon's own port.

use std::future::Future;
use std::net::TcpListener;
use std::pin::Pin;
use std::time::SystemTime;

use crate::{CheckResult, Port, Status};

/// A server to look at. Who makes connections is not this crate's business: `answer` does, and ends soon.
pub struct Server {
    /// `hub`, `mirror` or `modelscope`.
    pub id: &'static str,
    pub address: String,
    /// The server's clock, where it tells; ends with the reason when nothing answers.
    pub answer: Pin<Box<dyn Future<Output = Result<Option<SystemTime>, String>> + Send>>,
}

/// How this machine's clock differs from a server's, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClockOffset(pub(crate) i64);

impl ClockOffset {
    fn from(server: SystemTime) -> Self {
        let seconds = |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        match SystemTime::now().duration_since(server) {
            Ok(ahead) => Self(seconds(ahead)),
            Err(behind) => Self(-seconds(behind.duration())),
        }
    }
}

pub(crate) async fn server(server: Server) -> (CheckResult, Option<ClockOffset>) {
    let title = match server.id {
        "mirror" => ("Model mirror", "模型镜像站"),
        "modelscope" => ("ModelScope", "魔搭社区（ModelScope）"),
        _ => ("Model hub", "模型仓库"),
    };
    let result =
        CheckResult::new(server.id, title, ("reachable, for models from the network", "可访问（用于在线下载模型）"));
    match server.answer.await {
        Ok(clock) => {
            let result = result.found(format!("{} answers", server.address), format!("{} 可访问", server.address));
            (result, clock.map(ClockOffset::from))
        }
        Err(reason) => {
            let result = result
            .found(format!("{}: {reason}", server.address), format!("{}：{reason}", server.address))
            .status(
                Status::Warn,
                "models also come from files, web addresses and Python packages; behind a proxy set HTTPS_PROXY, for another server HF_ENDPOINT",
                "模型也可来自本地文件、网址或 Python 软件包；使用代理请设置 HTTPS_PROXY，更换服务器请设置 HF_ENDPOINT",
            );
            (result, None)
        }
    }
}

pub(crate) fn proxy() -> CheckResult {
    let set: Vec<_> = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"]
        .into_iter()
        .filter_map(|name| {
            let value = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase())).ok()?;
            (!value.is_empty()).then(|| format!("{name}={}", without_password(&value)))
        })
        .collect();
    let result =
        CheckResult::new("proxy", ("Proxy", "网络代理"), ("set where the network needs one", "按网络需要设置"));
    if set.is_empty() { result.found("none", "未设置") } else { result.found_as_is(set.join(", ")) }
}

/// `http://user:secret@host` as `http://…@host`: results are shown and sent to others.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    match rest.rsplit_once('@') {
        Some((_, host)) if scheme.is_empty() => format!("…@{host}"),
        Some((_, host)) => format!("{scheme}://…@{host}"),
        None => url.to_owned(),
    }
}

pub(crate) fn port(port: Port) -> CheckResult {
    let result = CheckResult::new(
        "port",
        ("Daemon's port", "守护进程端口"),
        ("free, or held by the daemon", "空闲，或由守护进程使用"),
    );
    match port {
        Port::Ours(address) => {
            result.found(format!("{address}, held by the daemon"), format!("{address}，由守护进程使用"))
        }
        Port::Wanted(address) => match TcpListener::bind(address) {
            Ok(_) => result.found(format!("{address}, free"), format!("{address}，空闲")),
            Err(error) => result.found_as_is(format!("{address}: {error}")).status(
                Status::Fail,
                "another program uses it: end it, or choose another address with JUSTTRAIN_ADDR",
                "端口被其他程序占用：请结束该程序，或用 JUSTTRAIN_ADDR 指定其他地址",
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_passwords_are_not_shown() {
        assert_eq!(without_password("http://me:p@ss@proxy:3128"), "http://…@proxy:3128");
        assert_eq!(without_password("me:pass@proxy:3128"), "…@proxy:3128");
        assert_eq!(without_password("http://proxy:3128"), "http://proxy:3128");
    }

    #[test]
    fn a_port_that_another_program_holds_fails() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        assert_eq!(port(Port::Wanted(address)).status, Status::Fail);
        assert_eq!(port(Port::Ours(address)).status, Status::Pass);
    }
}
