//! Values of single modules, by PEFT's patterns of names (`get_pattern_key` in `peft/utils/other.py`).

use regex::Regex;

/// Each pattern with its value. The first that matches a module's name, or the end of it from a dot on, holds.
#[derive(Debug, Clone)]
pub struct Patterns<T>(Vec<Pattern<T>>);

#[derive(Debug, Clone)]
struct Pattern<T> {
    written: String,
    regex: Regex,
    value: T,
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> PartialEq for Patterns<T> {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Pattern<T>, &Pattern<T>)| a.written == b.written && a.value == b.value;
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}

impl<T: Copy> Patterns<T> {
    /// Fails with the first pattern that is no regular expression, and why.
    pub fn new(values: impl IntoIterator<Item = (String, T)>) -> Result<Self, (String, regex::Error)> {
        let pattern = |(written, value): (String, T)| match Regex::new(&format!(r"^(.*\.)?({written})$")) {
            Ok(regex) => Ok(Pattern { written, regex, value }),
            Err(error) => Err((written, error)),
        };
        values.into_iter().map(pattern).collect::<Result<_, _>>().map(Self)
    }

    pub fn of(&self, module: &str) -> Option<T> {
        self.0.iter().find(|pattern| pattern.regex.is_match(module)).map(|pattern| pattern.value)
    }

    /// As they are written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, T)> {
        self.0.iter().map(|pattern| (pattern.written.as_str(), pattern.value))
    }

    /// The first that matches none of these modules.
    pub fn unused(&self, modules: &[&str]) -> Option<&str> {
        let matches = |pattern: &&Pattern<T>| !modules.iter().any(|module| pattern.regex.is_match(module));
        self.0.iter().find(matches).map(|pattern| pattern.written.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results of `get_pattern_key`.
    #[test]
    fn a_pattern_matches_whole_parts_at_the_end() {
        let written =
            [("q_proj", 1), (r"layers\.0\.mlp\..*", 2), ("model.layers.1.self_attn.k_proj", 3), ("proj|o_proj", 4)];
        let patterns = Patterns::new(written.map(|(pattern, value)| (pattern.to_owned(), value))).unwrap();
        for (module, value) in [
            ("model.layers.0.self_attn.q_proj", Some(1)),
            ("model.layers.0.mlp.up_proj", Some(2)),
            ("model.layers.10.mlp.up_proj", None),
            ("model.layers.1.self_attn.k_proj", Some(3)),
            ("model.layers.11.self_attn.k_proj", None),
            ("model.layers.1.self_attn.o_proj", Some(4)),
            ("model.layers.1.self_attn.v_proj", None),
        ] {
            assert_eq!(patterns.of(module), value, "{module}");
        }
        assert_eq!(patterns.unused(&["a.q_proj", "layers.0.mlp.x"]), Some("model.layers.1.self_attn.k_proj"));
        assert_eq!(Patterns::new([("(".to_owned(), 1)]).unwrap_err().0, "(");
    }
}
