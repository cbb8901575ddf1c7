//! Asking at a control socket: one request, one answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::super::error::CliError;

/// The most bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Asks `method` `path` at `socket`, with `body`, and returns what the machine says.
///
/// # Errors
/// [`CliError::Control`]: nobody is there, or it speaks otherwise. [`CliError::Refused`]: it says
/// why not.
pub(in crate::cli) fn call(socket: &Path, method: &str, path: &str, body: &Value) -> Result<Value, CliError> {
    let failed = |source| CliError::Control { socket: socket.to_owned(), source };
    let (code, said) = exchange(socket, method, path, body).map_err(failed)?;
    if code == 200 {
        return Ok(said);
    }
    let reason = said.get("error").and_then(Value::as_str).unwrap_or("it does not say why").to_owned();
    Err(CliError::Refused { socket: socket.to_owned(), reason })
}

fn exchange(socket: &Path, method: &str, path: &str, body: &Value) -> io::Result<(u16, Value)> {
    let mut stream = UnixStream::connect(socket)?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: slackwater\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    parse(&answer)
}

/// The code and the JSON of an answer that ends with its connection.
fn parse(answer: &[u8]) -> io::Result<(u16, Value)> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the answer {what}"));
    let text = std::str::from_utf8(answer).map_err(|_| wrong("is no text"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| wrong("has no end of its head"))?;
    let code = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| wrong("is not HTTP/1.1"))?;
    Ok((code, serde_json::from_str(body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_code_and_json_or_it_is_said_what_is_wrong() {
        let answer = |text: &str| parse(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(answer("HTTP/1.1 409 Conflict\r\nA: b\r\n\r\n{\"error\":\"x\"}\n").unwrap().0, 409);
        for (text, what) in [
            ("", "no end of its head"),
            ("HTTP/1.1 200 OK\r\n\r\n", "EOF"),
            ("SSH-2.0\r\n\r\n{}", "is not HTTP/1.1"),
            ("HTTP/1.1 2", "no end of its head"),
            ("HTTP/1.1 xx\r\n\r\n{}", "is not HTTP/1.1"),
        ] {
            let error = answer(text).unwrap_err();
            assert!(error.contains(what), "{text:?}: {error}");
        }
        assert!(parse(&[0xff, 0xfe]).is_err());
    }
}
