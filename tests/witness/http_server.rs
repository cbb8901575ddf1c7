//! A server of HTTP that does what a test wants, also what none should.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// What was asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    /// By names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
    /// How many came before.
    pub(super) number: usize,
}

/// What is done about it.
#[derive(Debug)]
pub(super) enum Reply {
    /// A status, a tag if there is one, a body.
    Answer(u16, Option<String>, Vec<u8>),
    /// These bytes, whatever they are.
    Bytes(Vec<u8>),
    /// Nothing, and the connection stays open until the other side closes it.
    Hang,
    /// The connection is closed.
    Close,
    /// A body that does not end before the other side closes the connection.
    Endless,
}

impl Reply {
    pub(super) fn text(status: u16, body: impl Into<String>) -> Self {
        Self::Answer(status, None, body.into().into_bytes())
    }
}

/// Serves until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    requests: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Gives each request to `behaviour`, each on a thread of its own.
    pub(super) fn start(behaviour: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, is_over, behaviour) = (requests.clone(), stop.clone(), Arc::new(behaviour));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                let (count, behaviour) = (count.clone(), behaviour.clone());
                // What the other side does not want any more is no failure of this one.
                std::thread::spawn(move || stream.and_then(|stream| serve(&stream, &count, behaviour.as_ref())));
            }
        });
        Self { address, requests, stop, thread: Some(thread) }
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: &TcpStream, count: &AtomicUsize, behaviour: &dyn Fn(&Request) -> Reply) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let headers: BTreeMap<_, _> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |len| len.parse().unwrap())];
    reader.read_exact(&mut body)?;
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let number = count.fetch_add(1, Ordering::SeqCst);
    match behaviour(&Request { method, path, headers, body, number }) {
        Reply::Answer(status, tag, body) => {
            let tag = tag.map(|tag| format!("ETag: {tag}\r\n")).unwrap_or_default();
            let len = body.len();
            write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len}\r\n{tag}\r\n")?;
            stream.write_all(&body)?;
        }
        Reply::Bytes(bytes) => stream.write_all(&bytes)?,
        Reply::Hang => {
            reader.read_to_end(&mut Vec::new())?;
        }
        Reply::Close => {}
        Reply::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
    }
    Ok(())
}
