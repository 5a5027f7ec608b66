//! A tiny web server that misbehaves on demand, and on it a hub with the wire protocols of the real ones.

pub(crate) mod hub;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::http::Patience;

/// Retries without waiting.
pub(crate) const EAGER: Patience = Patience {
    connect: Duration::from_secs(5),
    stall: Duration::from_secs(30),
    first_pause: Duration::from_millis(1),
    tries: 3,
};

#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    head: String,
    /// Of a form.
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }

    /// First and last byte that a range request wants; the last may be left open.
    fn range(&self) -> Option<(usize, Option<usize>)> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().unwrap(), last.parse().ok()))
    }

    /// Where a range request starts; 0 without one.
    pub(crate) fn offset(&self) -> usize {
        self.range().map_or(0, |(start, _)| start)
    }
}

pub(crate) struct Reply {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
    cut_after: usize,
    /// Between two single bytes.
    drip: Option<Duration>,
    /// After so many bytes nothing more comes, and the connection stays.
    stall_after: usize,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut_after: usize::MAX,
            drip: None,
            stall_after: usize::MAX,
        }
    }

    /// `bytes` from where the request wants them, as a well-behaved server answers.
    pub(crate) fn range(asked: &Asked, bytes: &[u8], etag: &str) -> Self {
        let fits = asked.header("if-range").is_none_or(|wanted| wanted == etag);
        let reply = match asked.range().filter(|_| fits) {
            Some((start, _)) if start >= bytes.len() => {
                Self::new(416, "").header(format!("Content-Range: bytes */{}", bytes.len()))
            }
            Some((start, last)) => {
                let end = last.map_or(bytes.len(), |last| bytes.len().min(last + 1));
                let range = format!("Content-Range: bytes {start}-{}/{}", end - 1, bytes.len());
                Self::new(206, &bytes[start..end]).header(range)
            }
            None => Self::new(200, bytes),
        };
        reply.header(format!("ETag: {etag}"))
    }

    pub(crate) fn header(mut self, line: impl Into<String>) -> Self {
        self.headers.push(line.into());
        self
    }

    /// Promises the whole body and closes the connection after `bytes` of it.
    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = bytes;
        self
    }

    pub(crate) fn stalling_after(mut self, bytes: usize) -> Self {
        self.stall_after = bytes;
        self
    }

    /// Sends one byte, waits, and so on.
    pub(crate) fn dripping(mut self, pause: Duration) -> Self {
        self.drip = Some(pause);
        self
    }
}

/// Serves until the test ends.
pub(crate) struct FakeServer {
    pub(crate) address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeServer {
    /// `answer` gets each request and how many came before it.
    pub(crate) async fn start(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (asked.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move {
                    let Some((stream, asked)) = read_request(stream).await else { return };
                    let before = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(asked.clone());
                        seen.len() - 1
                    };
                    let is_head = asked.method == "HEAD";
                    let _ = write_reply(stream, answer(&asked, before), is_head).await;
                });
            }
        });
        Self { address, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn read_request(mut stream: TcpStream) -> Option<(TcpStream, Asked)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut words = head.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut asked = Asked { method, path, head, body: String::new() };
    let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    asked.body = String::from_utf8(body).unwrap();
    Some((stream, asked))
}

async fn write_reply(mut stream: TcpStream, reply: Reply, is_head: bool) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\nConnection: close\r\n", reply.status, reply.body.len());
    for header in reply.headers {
        head.push_str(&header);
        head.push_str("\r\n");
    }
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(b"\r\n").await?;
    let body = &reply.body[..reply.body.len().min(reply.cut_after)];
    match reply.drip {
        _ if is_head => {}
        None if body.len() > reply.stall_after => {
            stream.write_all(&body[..reply.stall_after]).await?;
            std::future::pending::<()>().await;
        }
        None => stream.write_all(body).await?,
        Some(pause) => {
            for byte in body {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(pause).await;
            }
        }
    }
    stream.shutdown().await
}
