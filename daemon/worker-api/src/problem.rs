//! One clear error: where it is, what was found, what was expected, and the fix, in two languages.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A sentence a person reads, in English and in Chinese.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Text {
    pub en: String,
    pub zh: String,
}

impl Text {
    pub fn new(en: impl Into<String>, zh: impl Into<String>) -> Self {
        Self { en: en.into(), zh: zh.into() }
    }

    pub fn is_empty(&self) -> bool {
        self.en.is_empty()
    }
}

/// Stable identifiers; scripts match on these, never on the sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProblemCode {
    /// A file or folder is not there, or cannot be read.
    FileNotFound,
    /// The file is there and is not what its name or place promises (not a GGUF, not JSON, not UTF-8).
    FileFormat,
    /// The file ends before its own header says it does.
    FileTruncated,
    /// The file holds nothing to work on.
    FileEmpty,
    /// JSON or YAML that does not parse; `line` and `column` are set.
    Syntax,
    /// A recipe key that does not exist.
    UnknownKey,
    /// A key whose value has the wrong type.
    WrongType,
    /// A key whose value is out of its range, or two keys that do not go together.
    InvalidValue,
    /// A key that must be there and is not.
    MissingKey,
    /// A data row without an answer.
    NoAnswer,
    /// A data row whose answer is cut away by `cutoff_len`.
    AnswerCut,
    /// A data row whose turns or roles make no conversation.
    BadConversation,
    /// No data format fits the rows.
    UnknownFormat,
    /// The model's architecture is not one we know.
    UnknownArchitecture,
    /// A tensor is missing, or has a shape other than the configuration says.
    ShapeMismatch,
    /// A tensor type we do not read.
    UnknownTensorType,
    /// The chat template failed or is missing.
    ChatTemplate,
    /// The tokenizer cannot be built.
    Tokenizer,
    /// The named model is not in the store.
    ModelNotFound,
    /// The model comes under terms that nobody has accepted.
    LicenseNotAccepted,
    /// A source of models could not deliver: unreachable, refused, or without this model.
    SourceFailed,
    /// A file arrived whole and is not the one that was promised.
    ChecksumMismatch,
    /// The person stopped it.
    Cancelled,
    /// The disk is full, or a file cannot be written.
    DiskFull,
    /// Not enough memory.
    OutOfMemory,
    /// A checkpoint that is incomplete or does not belong to this recipe.
    Checkpoint,
    /// The loss became NaN or infinite.
    LossDiverged,
    /// The worker process ended without saying how.
    WorkerCrashed,
    /// The daemon ended while this was under way, or a person stopped it.
    Interrupted,
    /// A bug of ours.
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Warning,
    Error,
}

/// One thing that is wrong. Every field that is known is filled in; `fix` says what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub code: ProblemCode,
    pub severity: Severity,
    pub message: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// 1-based line in `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// 1-based column in `line`, counted in characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// 1-based data row in `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    #[serde(default, skip_serializing_if = "Text::is_empty")]
    pub fix: Text,
}

impl Problem {
    pub fn error(code: ProblemCode, en: impl Into<String>, zh: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: Text::new(en, zh),
            file: None,
            line: None,
            column: None,
            row: None,
            key: None,
            found: None,
            expected: None,
            fix: Text::default(),
        }
    }

    pub fn warning(code: ProblemCode, en: impl Into<String>, zh: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, en, zh) }
    }

    pub fn file(mut self, file: impl fmt::Display) -> Self {
        self.file = Some(file.to_string());
        self
    }

    pub fn at(mut self, line: u64, column: u64) -> Self {
        self.line = Some(line);
        self.column = Some(column);
        self
    }

    pub fn row(mut self, row: u64) -> Self {
        self.row = Some(row);
        self
    }

    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.found = Some(found.to_string());
        self
    }

    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.expected = Some(expected.to_string());
        self
    }

    pub fn fix(mut self, en: impl Into<String>, zh: impl Into<String>) -> Self {
        self.fix = Text::new(en, zh);
        self
    }
}

/// English, on one line: `data.json: line 3, column 7, row 2, key "output": message (found X, expected Y); fix: Z`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut places = Vec::new();
        places.extend(self.line.map(|line| format!("line {line}")));
        places.extend(self.column.map(|column| format!("column {column}")));
        places.extend(self.row.map(|row| format!("row {row}")));
        places.extend(self.key.as_ref().map(|key| format!("key \"{key}\"")));
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        if !places.is_empty() {
            write!(f, "{}: ", places.join(", "))?;
        }
        f.write_str(&self.message.en)?;
        match (&self.found, &self.expected) {
            (Some(found), Some(expected)) => write!(f, " (found {found}, expected {expected})")?,
            (Some(found), None) => write!(f, " (found {found})")?,
            (None, Some(expected)) => write!(f, " (expected {expected})")?,
            (None, None) => {}
        }
        if !self.fix.is_empty() {
            write!(f, "; fix: {}", self.fix.en)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}
