//! A tiny web server that misbehaves on demand.

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
    pub(crate) path: String,
    head: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }

    /// Where a range request starts; 0 without one.
    pub(crate) fn offset(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |start| start.parse().unwrap())
    }
}

pub(crate) struct Reply {
    status: u16,
    headers: Vec<String>,
    body: Vec<u8>,
    cut_after: usize,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut_after: usize::MAX }
    }

    /// `bytes` from where the request wants them, as a well-behaved server answers.
    pub(crate) fn range(asked: &Asked, bytes: &[u8], etag: &str) -> Self {
        let offset = asked.offset();
        let fits = asked.header("if-range").is_none_or(|wanted| wanted == etag);
        let reply = if offset > 0 && fits {
            let range = format!("Content-Range: bytes {offset}-{}/{}", bytes.len() - 1, bytes.len());
            Self::new(206, &bytes[offset..]).header(range)
        } else {
            Self::new(200, bytes)
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
        let seen = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let request = read_head(stream).await;
                let Some((stream, asked)) = request else { continue };
                let before = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(asked.clone());
                    seen.len() - 1
                };
                let _ = write_reply(stream, answer(&asked, before)).await;
            }
        });
        Self { address, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn read_head(mut stream: TcpStream) -> Option<(TcpStream, Asked)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1)?.to_owned();
    Some((stream, Asked { path, head }))
}

async fn write_reply(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\nConnection: close\r\n", reply.status, reply.body.len());
    for header in reply.headers {
        head.push_str(&header);
        head.push_str("\r\n");
    }
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(b"\r\n").await?;
    stream.write_all(&reply.body[..reply.body.len().min(reply.cut_after)]).await?;
    stream.shutdown().await
}
