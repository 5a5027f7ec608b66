//! Parameter groups: modules with a learning rate of their own, and LoRA+ (Hayou et al. 2024, arXiv 2402.12354), where
//! every B learns faster than its A.

use std::collections::HashMap;

use regex::Regex;

#[derive(Debug, Clone)]
pub struct Groups {
    /// Patterns of names, each with its rate as a share of the run's. The first that is found in a name holds.
    patterns: Vec<(Regex, f64)>,
    /// How many times A's rate B has.
    loraplus_ratio: f64,
    /// By name, of parameters that join late or learn more slowly.
    joining: HashMap<String, Joining>,
    /// By name, steps of parameters whose memory comes from an earlier stage.
    earlier_steps: HashMap<String, u64>,
}

/// How a parameter takes part in a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Joining {
    /// Its rate as a share of the run's, where no pattern says otherwise.
    pub share: f64,
    /// Steps of the run before its first.
    pub first_step: u64,
}

impl Default for Groups {
    /// All parameters learn alike.
    fn default() -> Self {
        Self::new(Vec::new(), 1.0)
    }
}

impl Groups {
    pub fn new(patterns: Vec<(Regex, f64)>, loraplus_ratio: f64) -> Self {
        Self { patterns, loraplus_ratio, joining: HashMap::new(), earlier_steps: HashMap::new() }
    }

    pub fn with_joining(self, joining: HashMap<String, Joining>) -> Self {
        Self { joining, ..self }
    }

    pub fn with_earlier_steps(self, earlier_steps: HashMap<String, u64>) -> Self {
        Self { earlier_steps, ..self }
    }

    /// How many steps a parameter itself has had with the run's step of this number: it begins to count when it joins,
    /// and counts on where it goes on with its memory.
    pub fn own_steps(&self, name: &str, number: u64) -> u64 {
        let first_step = self.joining.get(name).map_or(0, |joining| joining.first_step);
        number.saturating_sub(first_step) + self.earlier_steps.get(name).copied().unwrap_or(0)
    }

    /// A parameter's rate as a share of the run's.
    pub fn share(&self, name: &str) -> f64 {
        let found = self.patterns.iter().find(|(pattern, _)| pattern.is_match(name));
        let own = || self.joining.get(name).map_or(1.0, |joining| joining.share);
        let share = found.map_or_else(own, |(_, share)| *share);
        if name.ends_with(".lora_B") { share * self.loraplus_ratio } else { share }
    }

    /// Patterns that are found in none of these names.
    pub fn unused(&self, names: &[&str]) -> Vec<&str> {
        let unused = self.patterns.iter().filter(|(pattern, _)| !names.iter().any(|name| pattern.is_match(name)));
        unused.map(|(pattern, _)| pattern.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_holds_and_b_is_faster() {
        let pattern = |text: &str| Regex::new(text).unwrap();
        let groups =
            Groups::new(vec![(pattern(r"layers\.0\."), 0.5), (pattern("_proj"), 2.0), (pattern("head"), 3.0)], 16.0);
        let names = ["layers.0.q_proj.lora_A", "layers.1.q_proj.lora_A", "layers.1.q_proj.lora_B", "norm"];
        assert_eq!(names.map(|name| groups.share(name)), [0.5, 2.0, 32.0, 1.0]);
        assert_eq!(groups.unused(&names), ["head"]);
        let late = Joining { share: 0.25, first_step: 7 };
        let groups = groups.with_joining(names.map(|name| (name.to_owned(), late)).into());
        assert_eq!(names.map(|name| groups.share(name)), [0.5, 2.0, 32.0, 0.25]);
        assert_eq!(names.map(|name| groups.own_steps(name, 9)), [2; 4]);
        let groups = groups.with_earlier_steps([("norm".to_owned(), 5)].into());
        assert_eq!(names.map(|name| groups.own_steps(name, 9)), [2, 2, 2, 7]);
        assert_eq!(names.map(|name| groups.own_steps(name, 6)), [0, 0, 0, 5]);
        assert_eq!(Groups::default().share("layers.1.q_proj.lora_B"), 1.0);
    }
}
