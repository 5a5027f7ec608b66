//! KTO: an answer and whether it is good, `kto_tag` (LLaMA-Factory) or `label` (TRL), beside the keys of any other format.

use justtrain_worker_api::{FormatName, Problem};
use serde_json::Value;

use super::classification::Classification;
use super::{ALL, Format, Judgement, Row, missing, wrong_type};
use crate::Message;

pub(super) struct Kto;

const TAGS: [&str; 2] = ["kto_tag", "label"];

impl Format for Kto {
    fn name(&self) -> FormatName {
        FormatName::Kto
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["kto_tag"], &["label"]]
    }

    /// A `label` that is neither true nor false is one of the many other columns of this name; beside a text it is its class.
    fn fits(&self, row: &Row) -> bool {
        TAGS.iter().any(|tag| row.get(*tag).is_some_and(Value::is_boolean)) && !Classification.fits(row)
    }

    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        let answers = ALL.iter().filter(|format| {
            !matches!(
                format.name(),
                FormatName::Kto | FormatName::Preference | FormatName::Classification | FormatName::Text
            )
        });
        match answers.into_iter().find(|format| format.fits(row)) {
            Some(format) => format.turns(row),
            None => Err(missing(row, "prompt")),
        }
    }

    fn judgement(&self, row: &Row) -> Result<Judgement, Problem> {
        let tag = TAGS.into_iter().find(|tag| row.contains_key(*tag)).ok_or_else(|| missing(row, "label"))?;
        match &row[tag] {
            Value::Bool(good) => Ok(Judgement::Good(*good)),
            other => Err(wrong_type(tag, other, "true or false")),
        }
    }
}
