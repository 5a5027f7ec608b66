//! Operations in the database: their beginning and their end. Progress in between lives in memory only.

use justtrain_worker_api::{Problem, ProblemCode};
use rusqlite::{OptionalExtension, Transaction, params};

use super::{RequestKey, requests};
use crate::{Operation, OperationId, OperationState, Store, StoreError};

impl Store {
    /// Stores a new operation and gives back true with it, or the one that the same request made before and false.
    pub(crate) fn create_operation(
        &self,
        operation: Operation,
        request: &RequestKey,
    ) -> Result<(Operation, bool), StoreError> {
        self.write(|transaction| {
            if let Some(id) = requests::find(transaction, request)? {
                return Ok((get(transaction, &OperationId::from(id))?, false));
            }
            put(transaction, &operation)?;
            requests::remember(transaction, request, operation.id.as_str())?;
            Ok((operation, true))
        })
    }

    pub(crate) fn operation(&self, id: &OperationId) -> Result<Operation, StoreError> {
        let mut connection = self.connection();
        get(&connection.transaction()?, id)
    }

    pub(crate) fn put_operation(&self, operation: &Operation) -> Result<(), StoreError> {
        self.write(|transaction| put(transaction, operation))
    }

    /// Operations do not survive the daemon; the next one says so.
    pub(crate) fn fail_running_operations(&self) -> Result<(), StoreError> {
        self.write(|transaction| {
            let bodies: Vec<String> = transaction
                .prepare("SELECT body FROM operations WHERE state = ?1")?
                .query_map([OperationState::Running.as_str()], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for body in bodies {
                let mut operation: Operation = serde_json::from_str(&body)?;
                operation.state = OperationState::Failed;
                operation.problems = vec![
                    Problem::error(
                        ProblemCode::Interrupted,
                        "the daemon ended before this was done",
                        "守护进程在完成之前退出了",
                    )
                    .fix("run the command again", "请重新运行该命令"),
                ];
                put(transaction, &operation)?;
            }
            Ok(())
        })
    }
}

fn get(transaction: &Transaction<'_>, id: &OperationId) -> Result<Operation, StoreError> {
    let body: Option<String> = transaction
        .query_row("SELECT body FROM operations WHERE id = ?1", [id.as_str()], |row| row.get(0))
        .optional()?;
    let body = body.ok_or_else(|| StoreError::NoOperation(id.clone()))?;
    Ok(serde_json::from_str(&body)?)
}

fn put(transaction: &Transaction<'_>, operation: &Operation) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT INTO operations (id, state, body) VALUES (?1, ?2, ?3)
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body",
        params![operation.id.as_str(), operation.state.as_str(), serde_json::to_string(operation)?],
    )?;
    Ok(())
}
