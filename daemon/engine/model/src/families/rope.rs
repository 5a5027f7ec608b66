//! The rotary part of `config.json`. transformers 5 keeps it in `rope_parameters`, earlier ones in `rope_theta` and
//! `rope_scaling`.

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use super::reader::ConfigReader;
use crate::rotation::{Llama3, Rotation, Yarn};

/// Where the settings of one rotation lie.
pub(super) struct Rope<'a> {
    config: &'a ConfigReader<'a>,
    /// Such as `rope_parameters` or `rope_scaling`.
    place: String,
    settings: &'a Value,
    theta: f64,
    head_dim: usize,
}

/// The rotation of a decoder that has one.
pub(super) fn rotation(config: &ConfigReader<'_>, head_dim: usize) -> Result<Rotation, Problem> {
    let place = if config.values["rope_scaling"].is_null() { "rope_parameters" } else { "rope_scaling" };
    let settings = &config.values[place];
    let nested = [settings, &config.values["rope_parameters"]].into_iter().find_map(|s| s["rope_theta"].as_f64());
    let theta = nested.or(config.values["rope_theta"].as_f64()).unwrap_or(10_000.0);
    Rope { config, place: place.to_owned(), settings, theta, head_dim }.rotation()
}

impl<'a> Rope<'a> {
    pub(super) fn new(
        config: &'a ConfigReader<'a>,
        place: String,
        settings: &'a Value,
        theta: f64,
        head_dim: usize,
    ) -> Self {
        let theta = settings["rope_theta"].as_f64().unwrap_or(theta);
        Self { config, place, settings, theta, head_dim }
    }

    pub(super) fn rotation(&self) -> Result<Rotation, Problem> {
        let Self { config, settings, theta, head_dim, .. } = *self;
        for values in [config.values, &config.values["rope_parameters"], settings] {
            let part = &values["partial_rotary_factor"];
            if part.as_f64().is_some_and(|part| part != 1.0) {
                return Err(config.wrong(ProblemCode::InvalidValue, "partial_rotary_factor", part, "1.0"));
            }
        }
        let kind = settings.get("rope_type").or_else(|| settings.get("type")).unwrap_or(&Value::Null);
        match kind.as_str() {
            None if kind.is_null() => Ok(Rotation::default(head_dim, theta)),
            Some("default") => Ok(Rotation::default(head_dim, theta)),
            Some("linear") => Ok(Rotation::linear(head_dim, theta, self.number("factor")?)),
            Some("dynamic") => {
                let original = config.size("max_position_embeddings")?;
                Ok(Rotation::dynamic(head_dim, theta, self.number("factor")?, original))
            }
            Some("llama3") => {
                let constants = Llama3 {
                    factor: self.number("factor")?,
                    low_freq_factor: self.number("low_freq_factor")?,
                    high_freq_factor: self.number("high_freq_factor")?,
                    original: self.original()? as f64,
                };
                Ok(Rotation::llama3(head_dim, theta, constants))
            }
            Some("yarn") => Ok(Rotation::yarn(head_dim, theta, self.yarn()?)),
            Some("longrope" | "su") => self.long(),
            _ => {
                let known = "default, linear, dynamic, llama3, yarn or longrope";
                Err(config.wrong(ProblemCode::InvalidValue, &self.key("rope_type"), kind, known))
            }
        }
    }

    fn yarn(&self) -> Result<Yarn, Problem> {
        let (factor, original) = (self.number("factor")?, self.original()? as f64);
        let amplitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        // As in Python, a 0 counts as no number.
        let number = |key: &str| self.settings[key].as_f64().filter(|&number| number != 0.0);
        let by_factor = match (number("mscale"), number("mscale_all_dim")) {
            (Some(part), Some(all)) => amplitude(part) / amplitude(all),
            _ => amplitude(1.0),
        };
        Ok(Yarn {
            factor,
            original,
            beta_fast: number("beta_fast").unwrap_or(32.0),
            beta_slow: number("beta_slow").unwrap_or(1.0),
            truncate: self.settings["truncate"].as_bool().unwrap_or(true),
            amplitude: self.settings["attention_factor"].as_f64().unwrap_or(by_factor),
        })
    }

    fn long(&self) -> Result<Rotation, Problem> {
        let (original, pairs) = (self.original()?, self.head_dim / 2);
        let divisors = |key: &str| {
            let list: Option<Vec<f64>> =
                self.settings[key].as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
            list.filter(|list| list.len() == pairs).ok_or_else(|| {
                let expected = format!("{pairs} numbers, half as many as a head is wide");
                self.config.wrong(ProblemCode::InvalidValue, &self.key(key), &self.settings[key], &expected)
            })
        };
        let stretch = self.config.size("max_position_embeddings")? as f64 / original as f64;
        let factor = self.settings["factor"].as_f64().unwrap_or(stretch);
        let by_factor = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        let amplitude = self.settings["attention_factor"].as_f64().unwrap_or(by_factor);
        Ok(Rotation::long(self.theta, [&divisors("short_factor")?, &divisors("long_factor")?], original, amplitude))
    }

    /// The length that the model was trained on before it was stretched. A key beside the settings wins over theirs.
    fn original(&self) -> Result<usize, Problem> {
        let key = "original_max_position_embeddings";
        let nested = self.settings[key].as_u64().filter(|&size| size > 0);
        match (self.config.values[key].is_null(), nested) {
            (false, _) => self.config.size(key),
            (true, Some(size)) => Ok(size as usize),
            (true, None) => self.config.size("max_position_embeddings"),
        }
    }

    fn number(&self, key: &str) -> Result<f64, Problem> {
        let value = &self.settings[key];
        let positive = value.as_f64().filter(|&number| number > 0.0);
        positive.ok_or_else(|| self.config.wrong(ProblemCode::MissingKey, &self.key(key), value, "a positive number"))
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.place)
    }
}
