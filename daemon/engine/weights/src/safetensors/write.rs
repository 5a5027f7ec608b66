//! Writes safetensors tensor by tensor, so that a model is never in memory twice. A file appears whole or not at all:
//! it is written beside its place, flushed to the disk, then renamed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::{Map, Value, json};

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    BF16,
    /// Whole numbers from 0 to 255.
    U8,
}

impl Dtype {
    fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::U8 => "U8",
        }
    }

    fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::U8 => 1,
        }
    }
}

/// A tensor to be written; its numbers are asked for when their turn comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// Writes one file. `read` gives the numbers of an entry, row-major. Returns the file's size in bytes.
///
/// Fails with what `read` fails with, or `DiskFull`.
pub fn write(
    path: &Path,
    entries: &[Entry],
    metadata: &BTreeMap<String, String>,
    mut read: impl FnMut(&Entry) -> Result<Vec<f32>, Problem>,
) -> Result<u64, Problem> {
    let header = header(entries, metadata);
    let total = header.len() as u64 + entries.iter().map(|entry| entry.bytes() as u64).sum::<u64>();
    let failed = |error| cannot_write(path, total, &error);
    replace(path, total, |file| {
        file.write_all(&header).map_err(failed)?;
        entries.iter().try_for_each(|entry| {
            let numbers = read(entry)?;
            assert_eq!(numbers.len(), entry.shape.iter().product::<usize>(), "{}", entry.name);
            write_numbers(file, entry.dtype, &numbers).map_err(failed)
        })
    })?;
    Ok(total)
}

/// Writes `model.safetensors` into `folder`, or, above `shard_bytes`, shards and their index as transformers names
/// them. Returns the total size in bytes.
pub fn write_folder(
    folder: &Path,
    entries: &[Entry],
    shard_bytes: u64,
    mut read: impl FnMut(&Entry) -> Result<Vec<f32>, Problem>,
) -> Result<u64, Problem> {
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let shards = split(entries, shard_bytes);
    if shards.len() == 1 {
        return write(&folder.join("model.safetensors"), entries, &metadata, read);
    }
    let mut total = 0;
    let mut weight_map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        total += write(&folder.join(&name), shard, &metadata, &mut read)?;
        weight_map.extend(shard.iter().map(|entry| (entry.name.clone(), Value::from(name.clone()))));
    }
    let size: usize = entries.iter().map(Entry::bytes).sum();
    let index = json!({ "metadata": { "total_size": size }, "weight_map": weight_map });
    let (path, text) = (folder.join("model.safetensors.index.json"), format!("{index:#}\n"));
    let size = text.len() as u64;
    replace(&path, size, |file| file.write_all(text.as_bytes()).map_err(|error| cannot_write(&path, size, &error)))?;
    Ok(total)
}

/// Puts a new file of `size` bytes at `path`, or leaves what is there.
fn replace(
    path: &Path,
    size: u64,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let partial = path.with_added_extension("partial");
    let failed = |error| cannot_write(path, size, &error);
    let result = (|| {
        let mut file = BufWriter::new(File::create(&partial).map_err(failed)?);
        fill(&mut file)?;
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        fs::rename(&partial, path).map_err(failed)?;
        sync_folder(path).map_err(failed)
    })();
    if result.is_err() {
        // The error that matters is the one at hand.
        let _ = fs::remove_file(&partial);
    }
    result
}

/// Runs of entries of at most `limit` bytes, at least one entry each.
fn split(entries: &[Entry], limit: u64) -> Vec<&[Entry]> {
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if at > start && size + entry.bytes() as u64 > limit {
            shards.push(&entries[start..at]);
            (start, size) = (at, 0);
        }
        size += entry.bytes() as u64;
    }
    shards.push(&entries[start..]);
    shards
}

/// Length and JSON, padded with spaces to a multiple of 8 as the format asks.
fn header(entries: &[Entry], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut tensors = Map::new();
    if !metadata.is_empty() {
        tensors.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut offset = 0;
    for entry in entries {
        let end = offset + entry.bytes();
        let info = json!({ "dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": [offset, end] });
        tensors.insert(entry.name.clone(), info);
        offset = end;
    }
    let mut text = Value::Object(tensors).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    header
}

fn write_numbers(file: &mut impl Write, dtype: Dtype, numbers: &[f32]) -> io::Result<()> {
    match dtype {
        Dtype::F32 => numbers.iter().try_for_each(|n| file.write_all(&n.to_le_bytes())),
        Dtype::F16 => numbers.iter().try_for_each(|&n| file.write_all(&f16::from_f32(n).to_le_bytes())),
        Dtype::BF16 => numbers.iter().try_for_each(|&n| file.write_all(&bf16::from_f32(n).to_le_bytes())),
        Dtype::U8 => numbers.iter().try_for_each(|&n| file.write_all(&[n as u8])),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn cannot_write(path: &Path, bytes: u64, error: &io::Error) -> Problem {
    let problem = if error.kind() == io::ErrorKind::StorageFull {
        Problem::error(ProblemCode::DiskFull, "the disk is full", "磁盘已满")
    } else {
        Problem::error(
            ProblemCode::DiskFull,
            format!("the file cannot be written: {error}"),
            format!("无法写入文件：{error}"),
        )
    };
    problem
        .file(path.display())
        .expected(format!("room for {bytes} bytes"))
        .fix("free some disk space, or write to another folder", "请释放磁盘空间，或写入其他文件夹")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use crate::safetensors::SafetensorsFile;

    fn entries() -> Vec<Entry> {
        let entry = |name: &str, shape: &[usize], dtype| Entry { name: name.into(), shape: shape.to_vec(), dtype };
        vec![entry("a", &[2, 3], Dtype::F32), entry("b", &[4], Dtype::BF16), entry("c", &[1, 2], Dtype::F16)]
    }

    fn numbers(entry: &Entry) -> Result<Vec<f32>, Problem> {
        Ok((0..entry.shape.iter().product::<usize>()).map(|i| i as f32 + 0.5).collect())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let size = write(&path, &entries(), &metadata, numbers).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), size);
        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.metadata()["format"], "pt");
        for entry in entries() {
            assert_eq!(file.shape(&entry.name), Some(entry.shape.as_slice()));
            assert_eq!(file.read_f32(&entry.name).unwrap(), numbers(&entry).unwrap());
        }
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        write_folder(folder.path(), &entries(), 26, numbers).unwrap();
        assert!(folder.path().join("model-00002-of-00002.safetensors").is_file());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.read_f32("c", &[1, 2]).unwrap(), [0.5, 1.5]);
        fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
        let problem = Checkpoint::open(folder.path()).unwrap_err();
        assert_eq!(problem.code, ProblemCode::FileNotFound);
        assert!(problem.file.unwrap().contains("model-00002-of-00002"));
    }

    #[test]
    fn every_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write(&path, &entries(), &BTreeMap::new(), numbers).unwrap();
        let whole = fs::read(&path).unwrap();
        for len in 1..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let problem = SafetensorsFile::open(&path).unwrap_err();
            assert!(
                matches!(problem.code, ProblemCode::FileTruncated | ProblemCode::FileFormat),
                "{len} bytes: {problem}"
            );
        }
    }

    /// `/dev/full` refuses every byte as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named_with_the_room_it_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        fs::write(&path, "before").unwrap();
        std::os::unix::fs::symlink("/dev/full", folder.path().join("x.safetensors.partial")).unwrap();
        let problem = write(&path, &entries(), &BTreeMap::new(), numbers).unwrap_err();
        assert_eq!((problem.code, problem.message.en.as_str()), (ProblemCode::DiskFull, "the disk is full"));
        assert!(problem.file.unwrap().ends_with("x.safetensors"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        let size = write(&path, &entries(), &BTreeMap::new(), numbers).unwrap();
        assert_eq!(problem.expected.unwrap(), format!("room for {size} bytes"));
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/x.safetensors");
        let problem = write(&path, &entries(), &BTreeMap::new(), numbers).unwrap_err();
        assert_eq!(problem.code, ProblemCode::DiskFull);
        let path = folder.path().join("x.safetensors");
        write(&path, &entries(), &BTreeMap::new(), |_| Err(Problem::error(ProblemCode::Internal, "no", "不")))
            .unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
