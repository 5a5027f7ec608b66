//! Checkpoints: everything that a run needs to go on as if nothing had happened.
//!
//! `checkpoints/step-N/` holds what is trained (`trained.rs`), the optimiser's memory, and `state.json` with the step,
//! the place in the data and a digest of every file. A checkpoint is written beside its place, flushed, and renamed:
//! it is there whole or not at all. Random choices depend on seed and step alone, so there is no other state.

mod disk;
pub(crate) mod handed;
mod trained;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use trained::TrainedModel;

use justtrain_data::MixedState;
use justtrain_model::{Decoder, apply_tuned};
use justtrain_weights::Checkpoint;
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write};
use justtrain_worker_api::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::early_stopping::Best;
use crate::loss_scale::LossScale;
use crate::optim::StateTensor;
use crate::optim::schedule::PlateauState;

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// The part of a checkpoint that is not weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimiser steps that were done.
    pub step: u64,
    pub sampler: MixedState,
    pub first_loss: f64,
    pub last_loss: f64,
    /// Tokens and seconds of all steps so far.
    pub tokens: u64,
    pub seconds: f64,
    /// Digest of the recipe and the tokenised data: a checkpoint of another run is refused.
    pub fingerprint: String,
    /// Steps without a finite loss and gradient since the last good one.
    #[serde(default)]
    pub bad_steps: u64,
    /// Where products are in float16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// The best validation, where the recipe asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Of a schedule that looks at the validation loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plateau: Option<PlateauState>,
    /// What a weighting of tasks has learnt: the bits of its numbers, as JSON's decimals may lose the last one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_weights: Vec<u64>,
}

impl RunState {
    pub(crate) fn task_weights(&self) -> Vec<f64> {
        self.task_weights.iter().map(|&bits| f64::from_bits(bits)).collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    run: RunState,
    /// SHA-256 of each other file, by its path inside the checkpoint.
    files: BTreeMap<String, String>,
}

/// Where a run stood, and the optimiser's memory.
pub type Restored = (RunState, BTreeMap<String, StateTensor<'static>>);

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    run_dir: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// `keep` is `save_total_limit`.
    pub fn new(run_dir: &Path, keep: usize) -> Self {
        Self { run_dir: run_dir.to_owned(), keep }
    }

    fn folder(&self) -> PathBuf {
        self.run_dir.join("checkpoints")
    }

    /// Writes `step-N` and deletes the oldest beyond `keep`. Returns its folder.
    pub fn save(
        &self,
        decoder: &Decoder,
        model: &TrainedModel,
        memory: &BTreeMap<String, StateTensor<'_>>,
        run: &RunState,
    ) -> Result<PathBuf, Problem> {
        let place = self.folder().join(format!("step-{}", run.step));
        let partial = self.folder().join(format!("step-{}.partial", run.step));
        let saved = (|| {
            remove_dir(&partial)?;
            fs::create_dir_all(&partial).map_err(|error| cannot_write(&partial, &error))?;
            disk::require(&partial, model.bytes(decoder) + memory.values().map(StateTensor::bytes).sum::<u64>())?;
            model.save(decoder, &partial.join(model.folder()))?;
            save_memory(&partial.join(OPTIMIZER), memory)?;
            let manifest = Manifest { run: run.clone(), files: digests(&partial)? };
            let text = serde_json::to_string_pretty(&manifest).expect("a manifest is JSON");
            let path = partial.join(STATE);
            fs::write(&path, text).map_err(|error| cannot_write(&path, &error))?;
            sync_tree(&partial).map_err(|error| cannot_write(&partial, &error))?;
            remove_dir(&place)?;
            fs::rename(&partial, &place)
                .and_then(|()| File::open(self.folder())?.sync_all())
                .map_err(|error| cannot_write(&place, &error))
        })();
        if let Err(problem) = saved {
            // What was there before stays; the half-written one goes.
            let _ = fs::remove_dir_all(&partial);
            return Err(problem);
        }
        for (_, old) in self.all().into_iter().rev().skip(self.keep) {
            remove_dir(&old)?;
        }
        Ok(place)
    }

    /// Steps and folders of all checkpoints, oldest first.
    fn all(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let mut all: Vec<(u64, PathBuf)> = entries
            .filter_map(|entry| {
                let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
                Some((step, entry.path()))
            })
            .collect();
        all.sort_unstable();
        all
    }

    /// Deletes checkpoints of later steps, whose weights have turned out to be bad.
    pub fn forget_after(&self, step: u64) -> Result<(), Problem> {
        self.all().into_iter().filter(|(saved, _)| *saved > step).try_for_each(|(_, folder)| remove_dir(&folder))
    }

    /// The newest checkpoint whose files are whole, put onto the decoder of `base`. Damaged ones are reported and passed over.
    pub fn restore_newest(
        &self,
        decoder: &mut Decoder,
        base: &Checkpoint,
        model: &TrainedModel,
        fingerprint: &str,
        mut warn: impl FnMut(&Problem),
    ) -> Result<Option<Restored>, Problem> {
        for (_, folder) in self.all().into_iter().rev() {
            match read(&folder) {
                Ok(run) if run.fingerprint != fingerprint => {
                    return Err(Problem::error(
                        ProblemCode::Checkpoint,
                        "the recipe or its data changed since this checkpoint was saved",
                        "保存该检查点之后，配方或数据已被修改",
                    )
                    .file(folder.display())
                    .fix("start a new job for the changed recipe", "请为修改后的配方新建任务"));
                }
                Ok(run) => {
                    apply_tuned(decoder, base, &folder.join(model.folder()))?;
                    return Ok(Some((run, load_memory(&folder.join(OPTIMIZER))?)));
                }
                Err(mut problem) => {
                    problem.severity = justtrain_worker_api::Severity::Warning;
                    warn(&problem);
                }
            }
        }
        Ok(None)
    }
}

/// Writes what was trained to its folder in `parent`, whole or not at all. `complete` adds what belongs beside it.
pub fn save_final(
    parent: &Path,
    decoder: &Decoder,
    model: &TrainedModel,
    complete: impl FnOnce(&Path) -> Result<(), Problem>,
) -> Result<PathBuf, Problem> {
    let place = parent.join(model.folder());
    let partial = place.with_extension("partial");
    remove_dir(&partial)?;
    fs::create_dir_all(&partial).map_err(|error| cannot_write(&partial, &error))?;
    disk::require(&partial, model.bytes(decoder))?;
    model.save(decoder, &partial)?;
    complete(&partial)?;
    remove_dir(&place)?;
    sync_tree(&partial)
        .and_then(|()| fs::rename(&partial, &place))
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(|error| cannot_write(&place, &error))?;
    Ok(place)
}

/// Reads `state.json` and checks every file against its digest.
fn read(folder: &Path) -> Result<RunState, Problem> {
    let damaged = |file: &Path| {
        Problem::error(ProblemCode::Checkpoint, "this checkpoint is damaged", "该检查点已损坏").file(file.display())
    };
    let path = folder.join(STATE);
    let text = fs::read_to_string(&path).map_err(|_| damaged(&path))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| damaged(&path).found(error))?;
    let found = digests(folder)?;
    for (name, digest) in &manifest.files {
        if found.get(name) != Some(digest) {
            return Err(damaged(&folder.join(name)));
        }
    }
    Ok(manifest.run)
}

fn save_memory(path: &Path, memory: &BTreeMap<String, StateTensor<'_>>) -> Result<(), Problem> {
    let entry = |(name, tensor): (&String, &StateTensor<'_>)| {
        let (len, dtype) = match tensor {
            StateTensor::F32(numbers) => (numbers.len(), Dtype::F32),
            StateTensor::U8(codes) => (codes.len(), Dtype::U8),
        };
        Entry { name: name.clone(), shape: vec![len], dtype }
    };
    let entries: Vec<Entry> = memory.iter().map(entry).collect();
    write(path, &entries, &BTreeMap::new(), |entry| {
        Ok(match &memory[&entry.name] {
            StateTensor::F32(numbers) => numbers.to_vec(),
            StateTensor::U8(codes) => codes.iter().map(|&code| f32::from(code)).collect(),
        })
    })
    .map(drop)
}

fn load_memory(path: &Path) -> Result<BTreeMap<String, StateTensor<'static>>, Problem> {
    let file = SafetensorsFile::open(path)?;
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let read = |name: String| {
        let tensor = match file.read_u8(&name) {
            Some(codes) => StateTensor::U8(Cow::Owned(codes)),
            None => StateTensor::F32(Cow::Owned(file.read_f32(&name)?)),
        };
        Ok((name, tensor))
    };
    names.into_iter().map(read).collect()
}

/// SHA-256 of every file of a checkpoint but its manifest.
fn digests(folder: &Path) -> Result<BTreeMap<String, String>, Problem> {
    let mut digests = BTreeMap::new();
    for file in files(folder).map_err(|error| cannot_write(folder, &error))? {
        let name = file.strip_prefix(folder).expect("listed under the folder").display().to_string();
        if name != STATE {
            digests.insert(name, digest(&file).map_err(|error| cannot_write(&file, &error))?);
        }
    }
    Ok(digests)
}

/// Reads a part at a time: a file may be as large as the model.
fn digest(file: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut part) = (File::open(file)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex(&hash.finalize())),
            len => hash.update(&part[..len]),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every file below a folder.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for file in files(folder)? {
        File::open(&file)?.sync_all()?;
        if let Some(parent) = file.parent() {
            File::open(parent)?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

fn remove_dir(folder: &Path) -> Result<(), Problem> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot_write(folder, &error)),
        _ => Ok(()),
    }
}

pub(crate) fn cannot_write(path: &Path, error: &io::Error) -> Problem {
    Problem::error(
        ProblemCode::DiskFull,
        format!("the checkpoint cannot be written: {error}"),
        format!("无法写入检查点：{error}"),
    )
    .file(path.display())
    .fix("free some disk space, then resume the job", "请释放磁盘空间，然后恢复任务")
}
