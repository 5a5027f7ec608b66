//! Requests that had their effect: the same request again gives the same answer and no second effect.

use rusqlite::{OptionalExtension, Transaction, params};

use crate::{Store, StoreError, now};

/// What makes a request the same request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// A UUID that the caller made.
    pub id: String,
    /// The call, such as `CreateJob`.
    pub method: &'static str,
    /// Digest of everything in the request but its id.
    pub hash: String,
}

impl Store {
    /// The id of what this request made before; None when it is new.
    /// [`StoreError::RequestReused`] when the id belongs to another request.
    pub fn answered(&self, key: &RequestKey) -> Result<Option<String>, StoreError> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        find(&transaction, key)
    }
}

pub(super) fn find(transaction: &Transaction<'_>, key: &RequestKey) -> Result<Option<String>, StoreError> {
    let found: Option<(String, String, String)> = transaction
        .query_row("SELECT method, hash, response FROM requests WHERE id = ?1", [&key.id], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    match found {
        None => Ok(None),
        Some((method, hash, response)) if method == key.method && hash == key.hash => Ok(Some(response)),
        Some(_) => Err(StoreError::RequestReused(key.id.clone())),
    }
}

pub(super) fn remember(transaction: &Transaction<'_>, key: &RequestKey, response: &str) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT INTO requests (id, method, hash, response, time) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![key.id, key.method, key.hash, response, now()],
    )?;
    Ok(())
}
