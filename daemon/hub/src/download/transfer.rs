//! One request for one part of a file, written as it comes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode, Url};

use super::partial::{Part, Validator};
use crate::http::{Http, HttpError, Token, reason};

/// A connection that brings less than this for the time of a stall is as good as none.
const SLOWEST_BYTES_PER_SECOND: f64 = 1024.0;

/// Why a request ended before its part was full.
#[derive(Debug)]
pub(super) enum Broken {
    Http(HttpError),
    Disk(io::Error),
    /// The whole file came instead of the part: the server knows no ranges, or the file has changed.
    WholeFile,
    /// The server's file has another size than the one that was promised.
    WrongSize(u64),
    /// There is nothing at this offset.
    OutOfRange,
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Everything that the requests for one file share.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) http: Http,
    pub(super) url: Url,
    pub(super) token: Option<Token>,
    pub(super) file: Arc<File>,
    /// Of the whole file.
    pub(super) size: Option<u64>,
    pub(super) validator: Option<Validator>,
    /// What the first answer calls these bytes; known before a byte of it is written.
    pub(super) learned: Arc<OnceLock<Validator>>,
}

impl Request {
    /// Fills `part` from where it stands.
    pub(super) async fn fill(self, part: Arc<Part>) -> Result<(), Broken> {
        let offset = part.position();
        // The plain request where it will do: some servers answer ranges from a slower place, or not at all.
        let ranged = offset > 0 || part.end != self.size;
        let mut response = match self.http.get(&self.url, self.token.as_ref(), &self.headers(&part, ranged)).await {
            Ok(response) => response,
            Err(HttpError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) => {
                return Err(Broken::OutOfRange);
            }
            Err(error) => return Err(Broken::Http(error)),
        };
        self.check(&response, &part, ranged)?;
        if let Some(validator) = validator(&self.url, &response) {
            let _ = self.learned.set(validator);
        }
        let mut pace = Pace::new(&self.http);
        loop {
            let chunk = response.chunk().await.map_err(|error| Broken::Http(HttpError::Cut(reason(&error))))?;
            let Some(chunk) = chunk else { break };
            let position = part.position();
            let room = part.end.map_or(chunk.len() as u64, |end| end - position);
            if chunk.len() as u64 > room {
                if !ranged {
                    return Err(Broken::WrongSize(position + chunk.len() as u64));
                }
                // More than was asked for; the rest is another part's.
                self.file.write_all_at(&chunk[..room as usize], position)?;
                part.advance(room);
                break;
            }
            self.file.write_all_at(&chunk, position)?;
            part.advance(chunk.len() as u64);
            pace.check(chunk.len() as u64).map_err(Broken::Http)?;
        }
        match part.end {
            Some(end) if part.position() < end => Err(Broken::Http(HttpError::Cut("the server closed early".into()))),
            _ => Ok(()),
        }
    }

    fn headers(&self, part: &Part, ranged: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !ranged {
            return headers;
        }
        let last = part.end.map_or(String::new(), |end| (end - 1).to_string());
        let range = format!("bytes={}-{last}", part.position());
        headers.insert(RANGE, HeaderValue::try_from(range).expect("digits are ASCII"));
        let known = self.validator.as_ref().filter(|known| known.origin == origin(&self.url));
        if let Some(etag) = known.and_then(|known| HeaderValue::from_str(&known.etag).ok()) {
            headers.insert(IF_RANGE, etag);
        }
        headers
    }

    /// Whether the answer is what was asked for, before a byte of it is written.
    fn check(&self, response: &Response, part: &Part, ranged: bool) -> Result<(), Broken> {
        let refused = |what: String| Err(Broken::Http(HttpError::Cut(what)));
        if let Some(coding) = response.headers().get(CONTENT_ENCODING).filter(|coding| *coding != "identity") {
            return refused(format!("the server sent the bytes encoded as {coding:?}"));
        }
        match response.status() {
            // A page of another length, such as a hotel's login, must not cost what is already here.
            StatusCode::OK => match (self.size, response.content_length()) {
                (Some(size), Some(length)) if size != length => Err(Broken::WrongSize(length)),
                _ if ranged => Err(Broken::WholeFile),
                _ => Ok(()),
            },
            StatusCode::PARTIAL_CONTENT if ranged => match content_range(response) {
                Some(range) => {
                    if let (Some(size), Some(total)) = (self.size, range.total)
                        && size != total
                    {
                        return Err(Broken::WrongSize(total));
                    }
                    let fits = range.start == part.position() && part.end.is_none_or(|end| range.last < end);
                    if fits { Ok(()) } else { refused("the server sent another part than the one asked for".into()) }
                }
                None => refused("the server does not say which part it sent".into()),
            },
            status => refused(format!("the server answered {status}")),
        }
    }
}

/// What a one-byte request tells about a file of unknown size.
pub(super) struct Probed {
    pub(super) size: Option<u64>,
    pub(super) ranges: bool,
    pub(super) validator: Option<Validator>,
}

/// Asks for the first byte only.
pub(super) async fn probe(http: &Http, url: &Url, token: Option<&Token>) -> Result<Probed, HttpError> {
    let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-0"))]);
    let response = http.get(url, token, &headers).await?;
    let range = content_range(&response);
    let size = match response.status() {
        StatusCode::PARTIAL_CONTENT => range.as_ref().and_then(|range| range.total),
        _ => response.content_length(),
    };
    Ok(Probed { size, ranges: range.is_some(), validator: validator(url, &response) })
}

struct ContentRange {
    start: u64,
    last: u64,
    total: Option<u64>,
}

/// `bytes START-LAST/TOTAL`, TOTAL may be `*`.
fn content_range(response: &Response) -> Option<ContentRange> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some(ContentRange { start: start.parse().ok()?, last: last.parse().ok()?, total })
}

/// A weak ETag does not promise the same bytes.
fn validator(url: &Url, response: &Response) -> Option<Validator> {
    let etag = response.headers().get(ETAG)?.to_str().ok()?;
    etag.starts_with('"').then(|| Validator { origin: origin(url), etag: etag.to_owned() })
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Watches for a server that sends just enough never to be silent.
struct Pace {
    window: Duration,
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(http: &Http) -> Self {
        Self { window: http.patience.stall, since: Instant::now(), bytes: 0 }
    }

    fn check(&mut self, bytes: u64) -> Result<(), HttpError> {
        self.bytes += bytes;
        let elapsed = self.since.elapsed();
        if elapsed < self.window {
            return Ok(());
        }
        if (self.bytes as f64) < SLOWEST_BYTES_PER_SECOND * elapsed.as_secs_f64() {
            return Err(HttpError::Cut(format!("only {} bytes in {:.1} s", self.bytes, elapsed.as_secs_f64())));
        }
        (self.since, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}
