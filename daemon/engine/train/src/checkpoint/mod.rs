//! Checkpoints: everything that a run needs to go on as if nothing had happened.
//!
//! `checkpoints/step-N/` holds the adapter in PEFT's format, the optimiser's moments, and `state.json` with the step,
//! the place in the data and a digest of every file. A checkpoint is written beside its place, flushed, and renamed:
//! it is there whole or not at all. Random choices depend on seed and step alone, so there is no other state.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use justtrain_data::SamplerState;
use justtrain_model::Decoder;
use justtrain_model::adapters::{LoraConfig, load_peft, save_peft};
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write};
use justtrain_worker_api::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::optim::Moments;
use crate::prepare::CHAT_TEMPLATE;

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const ADAPTER: &str = "adapter";

/// The part of a checkpoint that is not weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimiser steps that were done.
    pub step: u64,
    pub sampler: SamplerState,
    pub first_loss: f64,
    pub last_loss: f64,
    /// Tokens and seconds of all steps so far.
    pub tokens: u64,
    pub seconds: f64,
    /// Digest of the recipe and the tokenised data: a checkpoint of another run is refused.
    pub fingerprint: String,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    run: RunState,
    /// SHA-256 of each other file, by its path inside the checkpoint.
    files: BTreeMap<String, String>,
}

/// Where a run stood, and the optimiser's moments by parameter.
pub type Restored = (RunState, Vec<(String, Moments)>);

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    run_dir: PathBuf,
    keep: usize,
    /// Where the recipe names a template: those who load the adapter must use the same one.
    template: Option<String>,
}

impl Checkpoints {
    /// `keep` is `save_total_limit`; `template` is the text of a chat template that is not the model's own.
    pub fn new(run_dir: &Path, keep: usize, template: Option<String>) -> Self {
        Self { run_dir: run_dir.to_owned(), keep, template }
    }

    fn folder(&self) -> PathBuf {
        self.run_dir.join("checkpoints")
    }

    /// Writes `step-N` and deletes the oldest beyond `keep`. Returns its folder.
    pub fn save(
        &self,
        decoder: &Decoder,
        config: &LoraConfig,
        base_model: &str,
        moments: &[(String, Moments)],
        run: &RunState,
    ) -> Result<PathBuf, Problem> {
        let place = self.folder().join(format!("step-{}", run.step));
        let partial = self.folder().join(format!("step-{}.partial", run.step));
        let saved = (|| {
            remove_dir(&partial)?;
            fs::create_dir_all(&partial).map_err(|error| cannot_write(&partial, &error))?;
            save_peft(decoder, config, base_model, &partial.join(ADAPTER))?;
            if let Some(template) = &self.template {
                let path = partial.join(ADAPTER).join(CHAT_TEMPLATE);
                fs::write(&path, template).map_err(|error| cannot_write(&path, &error))?;
            }
            save_moments(&partial.join(OPTIMIZER), moments)?;
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

    /// The newest checkpoint whose files are whole, put onto the decoder. Damaged ones are reported and passed over.
    pub fn restore_newest(
        &self,
        decoder: &mut Decoder,
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
                    load_peft(decoder, &folder.join(ADAPTER))?;
                    return Ok(Some((run, load_moments(&folder.join(OPTIMIZER))?)));
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

/// Writes the final adapter to `run_dir/adapter`, whole or not at all.
pub fn save_final_adapter(
    run_dir: &Path,
    decoder: &Decoder,
    config: &LoraConfig,
    base_model: &str,
) -> Result<PathBuf, Problem> {
    let (place, partial) = (run_dir.join(ADAPTER), run_dir.join("adapter.partial"));
    remove_dir(&partial)?;
    save_peft(decoder, config, base_model, &partial)?;
    remove_dir(&place)?;
    sync_tree(&partial)
        .and_then(|()| fs::rename(&partial, &place))
        .and_then(|()| File::open(run_dir)?.sync_all())
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

fn save_moments(path: &Path, moments: &[(String, Moments)]) -> Result<(), Problem> {
    let tensors: Vec<(String, &Vec<f32>)> = moments
        .iter()
        .flat_map(|(name, m)| [(format!("{name}.mean"), &m.mean), (format!("{name}.square"), &m.square)])
        .collect();
    let entry = |(name, values): &(String, &Vec<f32>)| Entry {
        name: name.clone(),
        shape: vec![values.len()],
        dtype: Dtype::F32,
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let by_name: BTreeMap<&str, &Vec<f32>> = tensors.iter().map(|(name, values)| (name.as_str(), *values)).collect();
    write(path, &entries, &BTreeMap::new(), |entry| Ok(by_name[entry.name.as_str()].clone())).map(drop)
}

fn load_moments(path: &Path) -> Result<Vec<(String, Moments)>, Problem> {
    let file = SafetensorsFile::open(path)?;
    let names = file.names().filter_map(|name| name.strip_suffix(".mean")).map(str::to_owned).collect::<Vec<_>>();
    names
        .into_iter()
        .map(|name| {
            let mean = file.read_f32(&format!("{name}.mean"))?;
            let square = file.read_f32(&format!("{name}.square"))?;
            Ok((name, Moments { mean, square }))
        })
        .collect()
}

/// SHA-256 of every file of a checkpoint but its manifest.
fn digests(folder: &Path) -> Result<BTreeMap<String, String>, Problem> {
    let mut digests = BTreeMap::new();
    for file in files(folder).map_err(|error| cannot_write(folder, &error))? {
        let name = file.strip_prefix(folder).expect("listed under the folder").display().to_string();
        if name != STATE {
            let bytes = fs::read(&file).map_err(|error| cannot_write(&file, &error))?;
            digests.insert(name, hex(&Sha256::digest(bytes)));
        }
    }
    Ok(digests)
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

fn cannot_write(path: &Path, error: &io::Error) -> Problem {
    Problem::error(
        ProblemCode::DiskFull,
        format!("the checkpoint cannot be written: {error}"),
        format!("无法写入检查点：{error}"),
    )
    .file(path.display())
    .fix("free some disk space, then resume the job", "请释放磁盘空间，然后恢复任务")
}
