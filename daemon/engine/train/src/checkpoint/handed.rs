//! What an optimiser remembers at the end of a stage, for the next one to go on with.
//!
//! `optimizer.safetensors` is the memory itself, which can go when the next stage is done. `optimizer.json` says how many
//! numbers each tensor has and how many steps it has been trained; it stays, as a resumed stage counts on from there.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};

use super::{OPTIMIZER, cannot_write, disk, load_memory, save_memory};
use crate::optim::StateTensor;

const TENSORS: &str = "optimizer.json";

/// A tensor that was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tensor {
    pub(crate) numbers: u64,
    /// Its own, on which the correction of running means depends.
    pub(crate) steps: u64,
}

/// Writes the memory, then what it is of.
pub(crate) fn hand_on(
    folder: &Path,
    tensors: &BTreeMap<String, Tensor>,
    memory: &BTreeMap<String, StateTensor<'_>>,
) -> Result<(), Problem> {
    disk::require(folder, memory.values().map(StateTensor::bytes).sum())?;
    save_memory(&folder.join(OPTIMIZER), memory)?;
    let (place, partial) = (folder.join(TENSORS), folder.join("optimizer.json.partial"));
    let text = serde_json::to_string_pretty(tensors).expect("names and numbers are JSON");
    fs::write(&partial, text)
        .and_then(|()| fs::File::open(&partial)?.sync_all())
        .and_then(|()| fs::rename(&partial, &place))
        .map_err(|error| cannot_write(&place, &error))
}

/// Deletes the memory that a stage has left. What it was of is still known.
pub(crate) fn forget(folder: &Path) {
    // One that is there for longer only takes room.
    let _ = fs::remove_file(folder.join(OPTIMIZER));
}

/// What the stage before has left of the tensors that this one trains.
#[derive(Debug)]
pub(crate) struct Handed {
    folder: PathBuf,
    /// Steps of each tensor with the name and the size of one that is trained now.
    pub(crate) steps: HashMap<String, u64>,
}

impl Handed {
    /// `sizes` are the tensors that are trained now.
    pub(crate) fn open(folder: &Path, sizes: &[(String, usize)]) -> Result<Self, Problem> {
        let path = folder.join(TENSORS);
        let text = fs::read_to_string(&path).map_err(|error| nothing_left(&path, &error))?;
        let tensors: BTreeMap<String, Tensor> =
            serde_json::from_str(&text).map_err(|error| nothing_left(&path, &error))?;
        let same = |(name, numbers): &(String, usize)| {
            let tensor = tensors.get(name).filter(|tensor| tensor.numbers == *numbers as u64)?;
            Some((name.clone(), tensor.steps))
        };
        Ok(Self { folder: folder.to_owned(), steps: sizes.iter().filter_map(same).collect() })
    }

    /// The memory of those tensors; of all others there is none.
    pub(crate) fn memory(&self) -> Result<BTreeMap<String, StateTensor<'static>>, Problem> {
        let path = self.folder.join(OPTIMIZER);
        if let Err(error) = fs::metadata(&path) {
            return Err(nothing_left(&path, &error));
        }
        let mut memory = load_memory(&path)?;
        memory.retain(|part, _| parents(part).any(|name| self.steps.contains_key(name)));
        Ok(memory)
    }
}

/// `a.b.mean.codes`: `a.b.mean`, `a.b`, `a`.
fn parents(part: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(part), |name| name.rsplit_once('.').map(|(parent, _)| parent)).skip(1)
}

fn nothing_left(path: &Path, error: &dyn std::fmt::Display) -> Problem {
    Problem::error(
        ProblemCode::Checkpoint,
        "what the optimiser of the stage before remembered cannot be read",
        "无法读取上一阶段优化器的状态",
    )
    .file(path.display())
    .key("keep_optimizer_state")
    .found(error)
    .fix("train again from the first stage, in a new job", "请新建任务，从第一阶段重新训练")
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn only_tensors_of_the_same_name_and_size_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = |len: usize| StateTensor::F32(Cow::Owned(vec![0.5; len]));
        let memory = BTreeMap::from([
            ("a.weight.mean".to_owned(), numbers(4)),
            ("a.weight.square.codes".to_owned(), StateTensor::U8(Cow::Owned(vec![1, 2]))),
            ("a.weight_2.mean".to_owned(), numbers(4)),
            ("b.weight.mean".to_owned(), numbers(3)),
        ]);
        let tensor = |numbers| Tensor { numbers, steps: 7 };
        let tensors = [("a.weight", 4), ("a.weight_2", 4), ("b.weight", 3)];
        let tensors = tensors.map(|(name, numbers)| (name.to_owned(), tensor(numbers))).into();
        hand_on(folder.path(), &tensors, &memory).unwrap();

        let sizes = [("a.weight".to_owned(), 4), ("b.weight".to_owned(), 6), ("c.weight".to_owned(), 4)];
        let handed = Handed::open(folder.path(), &sizes).unwrap();
        assert_eq!(handed.steps, HashMap::from([("a.weight".to_owned(), 7)]));
        let taken = handed.memory().unwrap();
        assert_eq!(taken.keys().collect::<Vec<_>>(), ["a.weight.mean", "a.weight.square.codes"]);
        assert_eq!(taken["a.weight.mean"], numbers(4));

        // A stage that goes on from its own checkpoint needs the steps alone.
        forget(folder.path());
        let handed = Handed::open(folder.path(), &sizes).unwrap();
        assert_eq!(handed.memory().unwrap_err().code, ProblemCode::Checkpoint);
    }
}
