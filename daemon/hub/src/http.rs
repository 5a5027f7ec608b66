//! HTTP with redirects followed by hand, so that a token never reaches another host.

use std::time::Duration;

use justtrain_worker_api::{Problem, ProblemCode};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use reqwest::{Client, Response, StatusCode, Url, redirect};

const MAX_REDIRECTS: usize = 10;
/// Longest pause that a server's `Retry-After` can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) connect: Duration,
    /// Without a single byte.
    pub(crate) stall: Duration,
    /// Before the first retry; doubled for each further one.
    pub(crate) first_pause: Duration,
    /// Tries that bring nothing new, one after the other.
    pub(crate) tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            first_pause: Duration::from_millis(500),
            tries: 5,
        }
    }
}

impl Patience {
    pub(crate) fn pause(&self, failed_tries: u32) -> Duration {
        self.first_pause.saturating_mul(1 << failed_tries.saturating_sub(1).min(6)).min(MAX_PAUSE)
    }
}

/// What went wrong with one request.
#[derive(Debug)]
pub(crate) enum HttpError {
    /// No answer: name not found, refused, no route, TLS, timeout.
    Unreachable(String),
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    /// Too many redirects, or one that leads nowhere.
    Redirect(String),
    /// The body ended or stalled before its end.
    Cut(String),
}

impl HttpError {
    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
                    || status.is_server_error()
            }
            Self::Cut(_) => true,
            Self::Unreachable(_) | Self::Redirect(_) => false,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => retry_after.map(|pause| pause.min(MAX_PAUSE)),
            _ => None,
        }
    }

    pub(crate) fn problem(&self, url: &str) -> Problem {
        let (en, zh, found) = match self {
            Self::Unreachable(reason) => ("the server cannot be reached", "无法连接服务器", reason.clone()),
            Self::Status { status, .. } => match *status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Problem::error(
                        ProblemCode::SourceFailed,
                        "the server does not let this user have it (a gated or private model?)",
                        "服务器拒绝访问（可能是需授权或私有的模型）",
                    )
                    .file(url)
                    .found(status)
                    .fix(
                        "accept the licence on the model's page, then set HF_TOKEN to your access token",
                        "请先在模型页面同意许可协议，再把访问令牌设置到环境变量 HF_TOKEN",
                    );
                }
                StatusCode::NOT_FOUND => ("the server does not have it", "服务器上没有该内容", status.to_string()),
                _ => ("the server refused the request", "服务器返回错误", status.to_string()),
            },
            Self::Redirect(reason) => ("the server's redirects lead nowhere", "服务器重定向无效", reason.clone()),
            Self::Cut(reason) => ("the transfer broke off", "传输中断", reason.clone()),
        };
        Problem::error(ProblemCode::SourceFailed, en, zh).file(url).found(found)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
    pub(crate) patience: Patience,
}

impl Http {
    /// Proxies are taken from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    pub(crate) fn new(patience: Patience) -> Result<Self, Problem> {
        // The first caller in this process wins; a second provider would be the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(patience.connect)
            .read_timeout(patience.stall)
            .build()
            .map_err(|error| {
                Problem::error(ProblemCode::Internal, "HTTPS cannot be set up", "无法初始化 HTTPS")
                    .found(reason(&error))
                    .fix("check the proxy variables and the system's certificates", "请检查代理变量和系统证书")
            })?;
        Ok(Self { client, patience })
    }

    /// A GET that ends with a 2xx answer. `token` goes to `url`'s own host, over the same scheme, and no further.
    pub(crate) async fn get(&self, url: &Url, token: Option<&str>, headers: &HeaderMap) -> Result<Response, HttpError> {
        let first = url.origin();
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .client
                .get(url.clone())
                .header(USER_AGENT, concat!("justtrain/", env!("CARGO_PKG_VERSION")))
                // Offsets and lengths must be those of the file itself.
                .header(ACCEPT_ENCODING, "identity")
                .headers(headers.clone());
            if let Some(token) = token.filter(|_| url.origin() == first) {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| HttpError::Unreachable("the access token has characters that HTTP forbids".into()))?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            let response = request.send().await.map_err(|error| HttpError::Unreachable(reason(&error)))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(HttpError::Status { status, retry_after: retry_after(response.headers()) });
            }
            url = next_hop(&url, response.headers())?;
        }
        Err(HttpError::Redirect(format!("more than {MAX_REDIRECTS}")))
    }

    /// A small document, with retries.
    pub(crate) async fn get_bytes(&self, url: &Url, token: Option<&str>) -> Result<Vec<u8>, HttpError> {
        let mut failed = 0;
        loop {
            let answer = async {
                let response = self.get(url, token, &HeaderMap::new()).await?;
                response.bytes().await.map_err(|error| HttpError::Cut(reason(&error)))
            };
            match answer.await {
                Ok(bytes) => return Ok(bytes.into()),
                Err(error) => {
                    failed += 1;
                    if !error.is_transient() || failed >= self.patience.tries {
                        return Err(error);
                    }
                    tokio::time::sleep(error.retry_after().unwrap_or(self.patience.pause(failed))).await;
                }
            }
        }
    }
}

fn next_hop(url: &Url, headers: &HeaderMap) -> Result<Url, HttpError> {
    let location = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| HttpError::Redirect("no Location".into()))?;
    let next = url.join(location).map_err(|error| HttpError::Redirect(format!("{location}: {error}")))?;
    if !matches!(next.scheme(), "http" | "https") || (url.scheme() == "https" && next.scheme() == "http") {
        return Err(HttpError::Redirect(format!("{next} is not as safe as {url}")));
    }
    Ok(next)
}

/// `Retry-After` in seconds; the form with a date is rare enough to be ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The innermost causes say what happened; reqwest's own sentence only repeats the URL.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    causes.dedup();
    match causes.pop() {
        Some(last) => last,
        None => error.to_string(),
    }
}
