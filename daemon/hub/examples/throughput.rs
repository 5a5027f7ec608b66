//! How fast a pull from this machine itself is, and what memory it takes:
//! `cargo run --release -p justtrain-hub --example throughput -- [MEBIBYTES] [FOLDER]`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use justtrain_hub::{Hub, PullRequest, Settings, SourceKind};
use tokio::sync::watch;

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a measurement is for reading")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let size = arguments.next().map_or(Ok(1024), |text| text.parse::<u64>())? << 20;
    let folder = arguments.next().map_or_else(|| std::env::temp_dir().join("justtrain-throughput"), PathBuf::from);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream, size));
        }
    });

    let settings = Settings { hub_endpoint: address.clone(), hub_cache: None, ..Settings::from_env() };
    let hub = Hub::with_settings(folder.clone(), settings);
    let (_keep, cancel) = watch::channel(false);
    let request =
        PullRequest { model: format!("{address}/model.gguf"), source: Some(SourceKind::Url), ..PullRequest::default() };
    let before = peak_memory_mebibytes();
    let start = Instant::now();
    let pulled = hub.pull(request, |_| {}, cancel).await;
    let seconds = start.elapsed().as_secs_f64();
    let model = pulled.map_err(|problems| format!("{problems:?}"))?.model;
    let after = peak_memory_mebibytes();
    println!("{:.0} MB/s, hashed and flushed, {seconds:.1} s", model.size_bytes as f64 / 1e6 / seconds);
    println!("peak memory {after} MiB, of which {} MiB during the pull", after - before);
    fs::remove_dir_all(folder)?;
    Ok(())
}

/// Answers one request with the wanted range of `GGUF` and zeros.
fn serve(mut stream: TcpStream, size: u64) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let start = range.and_then(|(start, _)| number(start)).unwrap_or(0);
    let end = range.and_then(|(_, last)| number(last)).map_or(size, |last| last + 1);
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"one\"\r\nConnection: close\r\n", end - start)?;
    if range.is_some() {
        write!(stream, "Content-Range: bytes {start}-{}/{size}\r\n", end - 1)?;
    }
    stream.write_all(b"\r\n")?;
    let zeros = vec![0; 256 << 10];
    let mut position = start;
    while position < end {
        let magic = b"GGUF".get(position as usize..).unwrap_or_default();
        let piece = if magic.is_empty() { &zeros[..] } else { magic };
        let piece = &piece[..piece.len().min((end - position) as usize)];
        stream.write_all(piece)?;
        position += piece.len() as u64;
    }
    Ok(())
}

/// The most that this process has had in memory so far.
fn peak_memory_mebibytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib >> 10)
}
