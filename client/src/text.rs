//! The two languages. Every sentence stands where it is used, in both; there is no catalogue to look things up in.

use std::env;

use clap::ValueEnum;
use justtrain_proto::v1::Text;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lang {
    En,
    Zh,
}

/// A sentence for the person in front of us: `say!(lang, "{n} rows", "{n} 行")`.
macro_rules! say {
    ($lang:expr, $en:literal, $zh:literal $(,)?) => {
        match $lang {
            $crate::text::Lang::En => format!($en),
            $crate::text::Lang::Zh => format!($zh),
        }
    };
}

/// A sentence in both languages, for places that do not know the person: `both!("{n} rows", "{n} 行")`.
macro_rules! both {
    ($en:literal, $zh:literal $(,)?) => {
        ::justtrain_proto::v1::Text { en: format!($en), zh: format!($zh) }
    };
}

pub(crate) use {both, say};

impl Lang {
    /// `--language`, then `JUSTTRAIN_LANG`, then the locale.
    pub(crate) fn detect(flag: Option<Self>) -> Self {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        flag.unwrap_or_else(|| {
            Self::from_variables(variable("JUSTTRAIN_LANG"), variable("LC_ALL").or_else(|| variable("LANG")))
        })
    }

    fn from_variables(ours: Option<String>, locale: Option<String>) -> Self {
        match ours.or(locale) {
            Some(value) if value.to_ascii_lowercase().starts_with("zh") => Self::Zh,
            _ => Self::En,
        }
    }

    /// The language of `arguments`, before they have been parsed, so that a usage error is in it too.
    pub(crate) fn of_arguments(arguments: &[String]) -> Self {
        let flag =
            arguments.iter().enumerate().find_map(|(index, argument)| match argument.strip_prefix("--language") {
                Some("") => arguments.get(index + 1).map(String::as_str),
                Some(rest) => rest.strip_prefix('='),
                None => None,
            });
        Self::detect(flag.and_then(|value| Self::from_str(value, true).ok()))
    }

    /// `text` in this language, or in the other where this one is missing.
    pub(crate) fn pick(self, text: &Text) -> &str {
        match self {
            Self::En if !text.en.is_empty() => &text.en,
            Self::Zh if text.zh.is_empty() => &text.en,
            Self::En | Self::Zh => &text.zh,
        }
    }

    pub(crate) fn pick_opt(self, text: &Option<Text>) -> &str {
        text.as_ref().map_or("", |text| self.pick(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(ours: Option<&str>, locale: Option<&str>) -> Lang {
        Lang::from_variables(ours.map(Into::into), locale.map(Into::into))
    }

    #[test]
    fn our_variable_wins_over_the_locale() {
        assert_eq!(from(None, None), Lang::En);
        assert_eq!(from(None, Some("zh_CN.UTF-8")), Lang::Zh);
        assert_eq!(from(Some("en"), Some("zh_CN.UTF-8")), Lang::En);
    }

    #[test]
    fn a_flag_is_seen_before_parsing() {
        let arguments = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        assert_eq!(Lang::of_arguments(&arguments(&["--language", "zh", "--nonsense"])), Lang::Zh);
        assert_eq!(Lang::of_arguments(&arguments(&["jobs", "--language=zh"])), Lang::Zh);
    }

    #[test]
    fn a_missing_translation_falls_back() {
        let text = Text { en: "disk".into(), zh: String::new() };
        assert_eq!(Lang::Zh.pick(&text), "disk");
    }
}
