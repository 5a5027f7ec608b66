//! Jobs in the database.

use justtrain_worker_api::{DevicePick, Problem, TrainResult};
use rusqlite::{OptionalExtension, Transaction, params};

use super::{RequestKey, events, requests};
use crate::{EventBody, Job, JobId, JobReason, JobState, Store, StoreError, now};

/// A change of a job's state and what explains it.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub to: JobState,
    pub reason: Option<JobReason>,
    pub problems: Vec<Problem>,
    pub result: Option<TrainResult>,
}

impl Change {
    pub fn to(to: JobState) -> Self {
        Self { to, reason: None, problems: Vec::new(), result: None }
    }

    pub fn because(to: JobState, reason: JobReason, problems: Vec<Problem>) -> Self {
        Self { reason: Some(reason), problems, ..Self::to(to) }
    }
}

impl Store {
    /// Stores a new job at the end of the queue, or gives back the one that the same request made before.
    pub fn create_job(&self, job: &Job, request: &RequestKey) -> Result<Job, StoreError> {
        self.write(|transaction| {
            if let Some(id) = requests::find(transaction, request)? {
                return JobId::parse(&id)
                    .map_or_else(|| Err(StoreError::RequestReused(request.id.clone())), |id| get(transaction, &id));
            }
            transaction.execute(
                "INSERT INTO jobs (id, state, queue_order, body)
                 VALUES (?1, ?2, (SELECT coalesce(max(queue_order), 0) + 1 FROM jobs), ?3)",
                params![job.id.as_str(), job.state.as_str(), serde_json::to_string(job)?],
            )?;
            requests::remember(transaction, request, job.id.as_str())?;
            let job = get(transaction, &job.id)?;
            events::append(transaction, &job.id, &EventBody::State(Box::new(job.clone())))?;
            Ok(job)
        })
    }

    pub fn job(&self, id: &JobId) -> Result<Job, StoreError> {
        let mut connection = self.connection();
        get(&connection.transaction()?, id)
    }

    /// Newest first: at most `limit` jobs older than the one numbered `before`, and the number that the next page
    /// starts from.
    pub fn jobs(&self, before: Option<u64>, limit: u32) -> Result<(Vec<Job>, Option<u64>), StoreError> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let mut statement = transaction
            .prepare_cached("SELECT number, id FROM jobs WHERE number < ?1 ORDER BY number DESC LIMIT ?2")?;
        let before = before.map_or(i64::MAX, |number| i64::try_from(number).unwrap_or(i64::MAX));
        let mut rows: Vec<(u64, String)> = statement
            .query_map(params![before, u64::from(limit) + 1], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().map(|(number, _)| *number).filter(|_| more);
        let jobs = rows
            .iter()
            .filter_map(|(_, id)| JobId::parse(id))
            .map(|id| get(&transaction, &id))
            .collect::<Result<_, _>>()?;
        Ok((jobs, next))
    }

    /// How many jobs are in a state.
    pub fn count(&self, state: JobState) -> Result<u32, StoreError> {
        Ok(self
            .connection()
            .query_row("SELECT count(*) FROM jobs WHERE state = ?1", [state.as_str()], |row| row.get(0))?)
    }

    /// The job whose turn it is on a device for which `free` holds.
    pub fn next_queued(&self, free: impl Fn(DevicePick) -> bool) -> Result<Option<Job>, StoreError> {
        let mut connection = self.connection();
        let queued = in_state(&connection.transaction()?, JobState::Queued)?;
        Ok(queued.into_iter().find(|job| free(job.device)))
    }

    /// Changes a job's state and stores the event that says so. [`StoreError::NotAllowed`] when the job is in a state
    /// that does not lead there.
    pub fn transition(&self, id: &JobId, change: Change) -> Result<Job, StoreError> {
        self.write(|transaction| transition(transaction, id, change))
    }

    /// Puts in order what a daemon left behind that did not end by itself: a job that was running is queued again, one
    /// that was being cancelled is cancelled. Gives back the jobs that were queued again.
    pub fn recover(&self) -> Result<Vec<Job>, StoreError> {
        self.write(|transaction| {
            let restarted = || vec![restarted_problem()];
            for job in in_state(transaction, JobState::Cancelling)? {
                let change = Change::because(JobState::Cancelled, JobReason::User, restarted());
                transition(transaction, &job.id, change)?;
            }
            for job in in_state(transaction, JobState::Running)? {
                let change = Change::because(JobState::Interrupted, JobReason::DaemonRestarted, restarted());
                transition(transaction, &job.id, change)?;
            }
            in_state(transaction, JobState::Interrupted)?
                .into_iter()
                .filter(|job| job.reason == Some(JobReason::DaemonRestarted))
                .map(|job| transition(transaction, &job.id, Change::to(JobState::Queued)))
                .collect()
        })
    }
}

fn restarted_problem() -> Problem {
    Problem::warning(
        justtrain_worker_api::ProblemCode::Interrupted,
        "the daemon ended while this job was running",
        "任务运行时守护进程退出了",
    )
}

fn in_state(transaction: &Transaction<'_>, state: JobState) -> Result<Vec<Job>, StoreError> {
    let mut statement = transaction.prepare_cached("SELECT id FROM jobs WHERE state = ?1 ORDER BY queue_order")?;
    let ids: Vec<String> = statement.query_map([state.as_str()], |row| row.get(0))?.collect::<Result<_, _>>()?;
    ids.iter().filter_map(|id| JobId::parse(id)).map(|id| get(transaction, &id)).collect()
}

pub(super) fn get(transaction: &Transaction<'_>, id: &JobId) -> Result<Job, StoreError> {
    let found: Option<(String, u32)> = transaction
        .prepare_cached(
            "SELECT body, CASE state WHEN 'QUEUED' THEN
                 (SELECT count(*) FROM jobs AS other
                  WHERE other.state = 'QUEUED' AND other.queue_order <= jobs.queue_order
                    AND coalesce(other.body ->> 'device', 'cpu') = coalesce(jobs.body ->> 'device', 'cpu'))
             ELSE 0 END
             FROM jobs WHERE id = ?1",
        )?
        .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (body, queue_position) = found.ok_or_else(|| StoreError::NoJob(id.clone()))?;
    Ok(Job { queue_position, ..serde_json::from_str(&body)? })
}

pub(super) fn put(transaction: &Transaction<'_>, job: &Job) -> Result<(), StoreError> {
    transaction.prepare_cached("UPDATE jobs SET state = ?2, body = ?3 WHERE id = ?1")?.execute(params![
        job.id.as_str(),
        job.state.as_str(),
        serde_json::to_string(job)?
    ])?;
    Ok(())
}

fn transition(transaction: &Transaction<'_>, id: &JobId, change: Change) -> Result<Job, StoreError> {
    let mut job = get(transaction, id)?;
    if !job.state.may_become(change.to) {
        return Err(StoreError::NotAllowed { id: id.clone(), from: job.state, to: change.to });
    }
    job.state = change.to;
    job.reason = change.reason;
    job.problems = change.problems;
    job.result = change.result;
    match change.to {
        JobState::Queued => {
            job.attempt += 1;
            job.ended = None;
            transaction.execute(
                "UPDATE jobs SET queue_order = (SELECT max(queue_order) + 1 FROM jobs) WHERE id = ?1",
                [id.as_str()],
            )?;
        }
        JobState::Running => job.started = Some(now()),
        JobState::Cancelling => {}
        JobState::Interrupted | JobState::Succeeded | JobState::Failed | JobState::Cancelled => job.ended = Some(now()),
    }
    put(transaction, &job)?;
    let job = get(transaction, id)?;
    events::append(transaction, id, &EventBody::State(Box::new(job.clone())))?;
    Ok(job)
}
