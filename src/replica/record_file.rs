//! The record of a store that is part of a pair: `pair.json` beside the chain.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::proto::Record;

const NAME: &str = "pair.json";
const DRAFT: &str = "pair.tmp";

/// A record is far smaller.
const BYTES_MAX: u64 = 64 << 10;

/// What can't be done with the record of a store.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct RecordError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads the record of the store in `dir`; none where it was never part of a pair.
///
/// # Errors
/// A file that can't be read, or is no record.
pub fn read_record(dir: &Path) -> Result<Option<Record>, RecordError> {
    let path = dir.join(NAME);
    let failed = |source| RecordError { path: path.clone(), source };
    let file = match File::open(&path) {
        Ok(file) => file,
        // What is no store at all is for whoever opens it to say.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let record = serde_json::from_slice(&bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    Ok(Some(record))
}

/// Makes `record` that of the store in `dir`. It is durable when this returns; after a crash there
/// is this one or the one before.
///
/// # Errors
/// What the operating system refuses.
pub fn write_record(dir: &Path, record: &Record) -> Result<(), RecordError> {
    let path = dir.join(DRAFT);
    let failed = |source| RecordError { path: path.clone(), source };
    let bytes = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    let mut draft = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(failed)?;
    draft.write_all(&bytes).and_then(|()| draft.sync_all()).map_err(failed)?;
    fs::rename(&path, dir.join(NAME)).map_err(failed)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::register::{Generation, Incarnation};

    #[test]
    fn a_record_comes_back_and_a_torn_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_record(dir.path()).unwrap(), None);
        for generation in 1_u64..4 {
            let names = vec![Incarnation(1), Incarnation(generation.into())];
            let record = Record { names, generation: Generation(generation), covers: generation % 2 == 0 };
            write_record(dir.path(), &record).unwrap();
            assert_eq!(read_record(dir.path()).unwrap(), Some(record));
        }
        fs::write(dir.path().join(NAME), b"{\"names\":[").unwrap();
        let error = read_record(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("pair.json"), "{error}");
        assert!(write_record(&dir.path().join("none"), &Record::new(Incarnation(1))).is_err());
    }
}
