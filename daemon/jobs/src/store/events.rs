//! Events of a job, numbered without a gap.

use justtrain_worker_api::Event;
use rusqlite::{OptionalExtension, Transaction, params};

use super::jobs;
use crate::{EventBody, JobEvent, JobId, Progress, Store, StoreError, UnixMillis, now};

impl Store {
    /// Stores what a worker said, in order, in one transaction.
    pub fn append(&self, id: &JobId, events: &[Event]) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        self.write(|transaction| {
            for event in events {
                append(transaction, id, &EventBody::Worker(event.clone()))?;
            }
            if let Some(progress) = events.iter().rev().find_map(Progress::of) {
                let mut job = jobs::get(transaction, id)?;
                job.progress = Some(progress);
                jobs::put(transaction, &job)?;
            }
            Ok(())
        })
    }

    /// At most `limit` events with a number greater than `seq`, in order.
    pub fn events_after(&self, id: &JobId, seq: u64, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
        let connection = self.connection();
        let mut statement = connection
            .prepare_cached("SELECT seq, time, body FROM events WHERE job = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3")?;
        let rows = statement.query_map(params![id.as_str(), seq, limit], |row| {
            Ok((row.get::<_, u64>(0)?, row.get::<_, UnixMillis>(1)?, row.get::<_, String>(2)?))
        })?;
        rows.map(|row| {
            let (seq, time, body) = row?;
            Ok(JobEvent { seq, time, body: serde_json::from_str(&body)? })
        })
        .collect()
    }

    /// The number of the job's newest event.
    pub fn last_seq(&self, id: &JobId) -> Result<u64, StoreError> {
        self.connection()
            .query_row("SELECT last_seq FROM jobs WHERE id = ?1", [id.as_str()], |row| row.get(0))
            .optional()?
            .ok_or_else(|| StoreError::NoJob(id.clone()))
    }
}

pub(super) fn append(transaction: &Transaction<'_>, id: &JobId, body: &EventBody) -> Result<(), StoreError> {
    let seq: Option<u64> = transaction
        .prepare_cached("UPDATE jobs SET last_seq = last_seq + 1 WHERE id = ?1 RETURNING last_seq")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    let seq = seq.ok_or_else(|| StoreError::NoJob(id.clone()))?;
    transaction
        .prepare_cached("INSERT INTO events (job, seq, time, body) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![id.as_str(), seq, now(), serde_json::to_string(body)?])?;
    Ok(())
}
