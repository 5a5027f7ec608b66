//! What a job would take of this machine, what the machine has, and the refusal where the two do not go together.

use justtrain_doctor::{VERDICT_BATCH_TOKENS, resources};
use justtrain_jobs::JobState;
use justtrain_proto::v1;
use justtrain_worker_api::{
    Command, DevicePick, Estimate, Failure, KnownModel, LargestModel, ModelFiles, Moment, Outcome, PastRun, Problem,
    RecipeSource, RecipeSummary, Remedy, Room, SpeedBasis, TimeEstimate,
};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::dataset::mixed_up;
use super::{Daemon, convert, status};

/// Memory that is left to everything else.
const MEMORY_RESERVE: u64 = 256 << 20;
/// Disk space that is left to the database and the logs.
const DISK_RESERVE: u64 = 256 << 20;
/// Newest jobs that are asked how fast they were.
const PAST_JOBS: u32 = 50;
/// Stands in for the memory that the system calls available.
const MEMORY_LIMIT: &str = "JUSTTRAIN_MEMORY_LIMIT";

impl Daemon {
    /// What a job on the processor may take when its turn comes: the one that runs there has given its memory back then.
    fn room(&self) -> Room {
        let memory = memory_limit().or_else(resources::available_memory).unwrap_or(u64::MAX);
        let given_back = match memory_limit() {
            Some(_) => 0,
            None => self.jobs.process_on(DevicePick::Cpu).map_or(0, resources::memory_of),
        };
        let disk = resources::available_disk(self.jobs.folder()).unwrap_or(u64::MAX);
        Room {
            memory_bytes: memory.saturating_add(given_back).saturating_sub(MEMORY_RESERVE),
            disk_bytes: disk.saturating_sub(DISK_RESERVE),
        }
    }

    pub(super) async fn estimate(
        &self,
        recipe: RecipeSource,
        model: ModelFiles,
        summary: &RecipeSummary,
    ) -> Result<v1::JobEstimate, Status> {
        let (room, name) = (self.room(), model.name.clone());
        let past_runs = Some(self.past_runs(&model, summary.device)?);
        match self.worker(Command::Estimate { recipe, model, room, past_runs }).await? {
            Outcome::Estimated(estimate) => Ok(converted(&estimate, room, name, &summary.warnings)),
            other => Err(mixed_up(&other)),
        }
    }

    /// Refuses a job that cannot fit. One that cannot be estimated is let through: what is wrong with it, its run says.
    pub(super) async fn refuse_what_cannot_fit(&self, recipe: RecipeSource, model: ModelFiles) -> Result<(), Status> {
        let never = watch::Sender::new(false);
        let command = Command::Estimate { recipe, model, room: self.room(), past_runs: None };
        match self.jobs.program().run(&command, never.subscribe(), |_| {}).await {
            Ok(Outcome::Estimated(estimate)) if !estimate.problems.is_empty() => {
                Err(status::with_code(Code::FailedPrecondition, "DOES_NOT_FIT", &estimate.problems))
            }
            Ok(_) => Ok(()),
            Err(Failure { problems, .. }) => {
                let problem = problems.first().map(ToString::to_string).unwrap_or_default();
                tracing::info!(problem, "a job could not be estimated");
                Ok(())
            }
        }
    }

    /// The largest of the known models that each method can train here, for `doctor`.
    pub(super) async fn largest_models(&self) -> Result<Vec<LargestModel>, Problem> {
        let models = justtrain_hub::known_models()
            .map(|(name, config)| KnownModel { name: name.to_string(), config: config.clone() })
            .collect();
        let never = watch::Sender::new(false);
        let command = Command::LargestModels { models, room: self.room(), batch_tokens: VERDICT_BATCH_TOKENS };
        match self.jobs.program().run(&command, never.subscribe(), |_| {}).await {
            Ok(Outcome::LargestModels { methods }) => Ok(methods),
            Ok(other) => Err(Problem::error(
                justtrain_worker_api::ProblemCode::Internal,
                format!("the worker answered something else: {other:?}"),
                "工作进程答非所问",
            )),
            Err(mut failure) => Err(failure.problems.swap_remove(0)),
        }
    }

    /// Finished jobs on the same model and device, newest first.
    fn past_runs(&self, model: &ModelFiles, device: DevicePick) -> Result<Vec<PastRun>, Status> {
        let (jobs, _) = self.jobs.store().jobs(None, PAST_JOBS).map_err(status::of_store)?;
        let same = jobs
            .into_iter()
            .filter(|job| job.state == JobState::Succeeded && job.model.path == model.path && job.device == device);
        let runs = same.filter_map(|job| {
            let tokens_per_second = job.result?.tokens_per_second;
            (tokens_per_second > 0.0).then_some(PastRun { recipe: job.recipe, tokens_per_second })
        });
        Ok(runs.collect())
    }
}

/// `JUSTTRAIN_MEMORY_LIMIT`: a number of bytes, or of `MiB` or `GiB`.
fn memory_limit() -> Option<u64> {
    let text = std::env::var(MEMORY_LIMIT).ok()?;
    let bytes = parse_bytes(&text);
    if bytes.is_none() {
        tracing::warn!(text, "{MEMORY_LIMIT} is not a size such as 8GiB; it is not used");
    }
    bytes
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    let bytes = number.trim().parse::<f64>().ok()? * unit as f64;
    (bytes >= 0.0).then_some(bytes as u64)
}

fn converted(estimate: &Estimate, room: Room, model: String, warnings: &[Problem]) -> v1::JobEstimate {
    let Estimate { device, memory, disk, work, time, problems, remedies, .. } = estimate;
    v1::JobEstimate {
        model,
        device: device.to_string(),
        memory: memory.map(|memory| v1::MemoryEstimate {
            total_bytes: memory.total(),
            available_bytes: room.memory_bytes,
            reserve_bytes: MEMORY_RESERVE,
            moment: match memory.moment {
                Moment::Loading => "loading",
                Moment::Training => "training",
                Moment::Evaluating => "evaluating",
                Moment::Saving => "saving",
            }
            .to_owned(),
            weights_bytes: memory.weights,
            trained_weights_bytes: memory.trained_weights,
            gradients_bytes: memory.gradients,
            optimizer_bytes: memory.optimizer,
            activations_bytes: memory.activations,
            output_layer_bytes: memory.output_layer,
            data_bytes: memory.data,
            model_file_bytes: memory.model_file,
            program_bytes: memory.program,
        }),
        disk: Some(v1::DiskEstimate {
            total_bytes: disk.total(),
            available_bytes: room.disk_bytes,
            reserve_bytes: DISK_RESERVE,
            checkpoints_bytes: disk.checkpoints,
            result_bytes: disk.result,
            temporary_bytes: disk.temporary,
        }),
        time: time.map(|TimeEstimate { tokens_per_second, seconds, basis }| v1::TimeEstimate {
            steps: work.steps,
            tokens: work.tokens,
            tokens_per_second,
            seconds,
            basis: match basis {
                SpeedBasis::PastRun => "past_run",
                SpeedBasis::Measured => "measured",
            }
            .to_owned(),
        }),
        trainable_parameters: estimate.trainable_parameters,
        total_parameters: estimate.total_parameters,
        largest_batch_tokens: work.largest_batch_tokens,
        rows_read: work.rows_read,
        rows: work.rows,
        problems: problems.iter().chain(warnings).map(convert::problem).collect(),
        remedies: remedies.iter().map(remedy).collect(),
    }
}

fn remedy(remedy: &Remedy) -> v1::Remedy {
    v1::Remedy {
        change: remedy.change.clone(),
        cost: (!remedy.cost.is_empty()).then(|| convert::text(&remedy.cost)),
        memory_bytes: remedy.memory_bytes,
        disk_bytes: remedy.disk_bytes,
        fits: remedy.fits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        assert_eq!(parse_bytes("1024"), Some(1024));
        assert_eq!(parse_bytes("1.5GiB"), Some(3 << 29));
        assert_eq!(parse_bytes(" 2 MiB "), Some(2 << 20));
        for bad in ["", "much", "-1", "3 bananas"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }
}
