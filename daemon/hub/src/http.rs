//! HTTP with redirects followed by hand, so that a token never reaches another host.

use std::time::{Duration, SystemTime};

use justtrain_worker_api::{Problem, ProblemCode};
use rand::RngExt;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, COOKIE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
};
use reqwest::{Client, Response, StatusCode, Url, redirect};

const MAX_REDIRECTS: usize = 10;
/// Longest pause of our own choice.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A server that asks for a longer pause than this is left instead.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

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
    /// Somewhere in the upper half of the doubled pause: parts that broke off together do not come back together.
    pub(crate) fn pause(&self, failed_tries: u32) -> Duration {
        let longest = self.first_pause.saturating_mul(1 << failed_tries.saturating_sub(1).min(6)).min(MAX_PAUSE);
        longest.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Before the next try after `error`: what the server asked for, never less.
    pub(crate) fn before_retry(&self, error: &HttpError, failed_tries: u32) -> Duration {
        match error.retry_after() {
            Some(asked) => asked + self.pause(1),
            None => self.pause(failed_tries),
        }
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
        /// The hub's own word for it, such as `GatedRepo`.
        code: Option<String>,
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
            Self::Status { retry_after: Some(pause), .. } if *pause > MAX_RETRY_AFTER => false,
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
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(crate) fn problem(&self, url: &str) -> Problem {
        let (en, zh, found) = match self {
            Self::Unreachable(reason) => ("the server cannot be reached", "无法连接服务器", reason.clone()),
            Self::Status { status, retry_after: Some(pause), .. } if *status == StatusCode::TOO_MANY_REQUESTS => (
                "the server has had too many requests",
                "请求过于频繁",
                format!("{status}, wait {} s", pause.as_secs()),
            ),
            Self::Status { status, .. } => match *status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    ("the server does not let this user have it", "服务器拒绝访问", status.to_string())
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

/// An access token and how it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) secret: String,
    /// The cookie that carries it as well, for servers that look there.
    pub(crate) cookie: Option<&'static str>,
}

impl Token {
    fn headers(&self) -> Result<HeaderMap, HttpError> {
        let sensitive = |text: String| {
            let mut value = HeaderValue::try_from(text)
                .map_err(|_| HttpError::Unreachable("the access token has characters that HTTP forbids".into()))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, sensitive(format!("Bearer {}", self.secret))?);
        if let Some(cookie) = self.cookie {
            headers.insert(COOKIE, sensitive(format!("{cookie}={}", self.secret))?);
        }
        Ok(headers)
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
    pub(crate) async fn get(
        &self,
        url: &Url,
        token: Option<&Token>,
        headers: &HeaderMap,
    ) -> Result<Response, HttpError> {
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
                request = request.headers(token.headers()?);
            }
            let response = request.send().await.map_err(|error| HttpError::Unreachable(reason(&error)))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(refusal(&response));
            }
            url = next_hop(&url, response.headers())?;
        }
        Err(HttpError::Redirect(format!("more than {MAX_REDIRECTS}")))
    }

    /// A small document, with retries.
    pub(crate) async fn get_bytes(&self, url: &Url, token: Option<&Token>) -> Result<Vec<u8>, HttpError> {
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
                    tokio::time::sleep(self.patience.before_retry(&error, failed)).await;
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

fn refusal(response: &Response) -> HttpError {
    let code = response.headers().get("x-error-code").and_then(|value| value.to_str().ok()).map(str::to_owned);
    HttpError::Status { status: response.status(), retry_after: retry_after(response.headers()), code }
}

/// `Retry-After`, in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            Some(httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO))
        }
    }
}

/// The server's clock.
pub(crate) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_the_server_asks_for_is_kept() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        headers.insert(RETRY_AFTER, date.parse().unwrap());
        assert!((90..=100).contains(&retry_after(&headers).unwrap().as_secs()));

        let status = StatusCode::TOO_MANY_REQUESTS;
        let busy = |pause| HttpError::Status { status, retry_after: Some(pause), code: None };
        let asked = Duration::from_secs(100);
        assert!(busy(asked).is_transient() && Patience::default().before_retry(&busy(asked), 1) >= asked);
        assert!(!busy(MAX_RETRY_AFTER * 2).is_transient());
    }

    #[test]
    fn pauses_grow_and_differ() {
        let patience = Patience::default();
        for failed in 1..20 {
            let longest = patience.first_pause.saturating_mul(1 << (failed - 1).min(6)).min(MAX_PAUSE);
            let pause = patience.pause(failed);
            assert!(pause <= longest && pause >= longest / 2, "{failed}: {pause:?}");
        }
    }
}
