//! The database: one SQLite file, one connection.
//!
//! WAL with `synchronous=FULL`: what a call has reported stays, also when the power goes. A write costs one flush of the
//! disk, some milliseconds, which is why a worker's events are appended in batches.

mod events;
mod jobs;
mod operations;
mod requests;

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use rusqlite_migration::{M, Migrations};
use tokio::sync::watch;

pub use jobs::Change;
pub use requests::RequestKey;

use crate::{JobId, JobState, OperationId};

const STEPS: &[M<'_>] = &[M::up(include_str!("sql/001_initial.sql"))];
const MIGRATIONS: Migrations<'_> = Migrations::from_slice(STEPS);

/// Jobs, events, operations and answered requests.
pub struct Store {
    connection: Mutex<Connection>,
    id: String,
    /// Counts stored changes; whoever waits for news waits for this and then reads the store.
    changes: watch::Sender<u64>,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no job {0}")]
    NoJob(JobId),
    #[error("there is no operation {0}")]
    NoOperation(OperationId),
    #[error("job {id} is {from}, so it cannot become {to}", from = from.as_str(), to = to.as_str())]
    NotAllowed { id: JobId, from: JobState, to: JobState },
    #[error("request id {0} was used before, for another request")]
    RequestReused(String),
    #[error("the database failed: {0}")]
    Sql(#[from] rusqlite::Error),
    #[error("the database could not be brought to this version: {0}")]
    Migration(#[from] rusqlite_migration::Error),
    #[error("a record in the database cannot be read: {0}")]
    Record(#[from] serde_json::Error),
}

impl StoreError {
    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Sql(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }
}

impl Store {
    /// Opens the file, makes it if it is not there, and brings it to this version's schema.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::with_connection(Connection::open(path)?)
    }

    fn with_connection(mut connection: Connection) -> Result<Self, StoreError> {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        MIGRATIONS.to_latest(&mut connection)?;
        connection.execute(
            "INSERT INTO store (id) SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM store)",
            [uuid::Uuid::new_v4().simple().to_string()],
        )?;
        let id = connection.query_row("SELECT id FROM store", (), |row| row.get(0))?;
        Ok(Self { connection: Mutex::new(connection), id, changes: watch::Sender::new(0) })
    }

    /// Tells this store from every other.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Changes whenever something has been stored.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere cannot leave half a transaction behind: it is rolled back when dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in one transaction; tells the waiting once it is on the disk.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut connection = self.connection();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        transaction.commit()?;
        self.changes.send_modify(|count| *count += 1);
        Ok(value)
    }
}
