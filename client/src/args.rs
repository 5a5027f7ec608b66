//! The command line, and its Chinese face.

use std::ffi::OsString;

use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser};

use crate::commands::Command;
use crate::failure::Failure;
use crate::help_zh;
use crate::text::{Lang, both};
use crate::ui::Ui;

/// Fine-tune language models on your own data
#[derive(Debug, Parser)]
#[command(name = "justtrain", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    /// Short for --language, before the verb; `data generate` has a `--lang` of its own
    #[arg(long, value_enum, hide = true)]
    pub lang: Option<Lang>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print one JSON object on the last line of standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Language of the output
    #[arg(long, global = true, value_enum)]
    pub language: Option<Lang>,
    /// Address of the daemon
    #[arg(long, global = true, env = "JUSTTRAIN_ADDR", value_name = "HOST:PORT")]
    pub addr: Option<String>,
}

impl Cli {
    pub(crate) fn ui(&self) -> Ui {
        Ui::new(Lang::detect(self.global.language.or(self.lang)), self.global.json)
    }
}

/// What parsing came to when there is no command to run.
#[derive(Debug)]
pub(crate) enum NoCommand {
    /// `--help` or `--version`: the text.
    Shown(clap::Error),
    Wrong(Failure),
}

/// # Errors
/// [`NoCommand`] where there is nothing to run.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    lang: Lang,
) -> Result<Cli, NoCommand> {
    let matches = command(lang).try_get_matches_from(arguments);
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            NoCommand::Shown(error)
        }
        _ => NoCommand::Wrong(Failure::usage(usage_text(&error))),
    })
}

fn command(lang: Lang) -> clap::Command {
    let command = Cli::command().max_term_width(100);
    match lang {
        Lang::En => command,
        Lang::Zh => {
            let help = Arg::new("help").short('h').long("help").action(ArgAction::Help).global(true).help("Print help");
            let version =
                Arg::new("version").short('V').long("version").action(ArgAction::Version).help("Print version");
            help_zh::translate(command.disable_help_flag(true).disable_version_flag(true).arg(help).arg(version))
        }
    }
}

fn usage_text(error: &clap::Error) -> justtrain_proto::v1::Text {
    let rendered = error.render().to_string();
    let en = rendered.trim_start_matches("error: ").trim_end().to_owned();
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let argument = context(ContextKind::InvalidArg);
    let value = context(ContextKind::InvalidValue);
    let zh = match error.kind() {
        ErrorKind::UnknownArgument => both!("", "没有参数 {argument}").zh,
        ErrorKind::InvalidSubcommand => {
            let written = context(ContextKind::InvalidSubcommand);
            both!("", "没有命令 {written}").zh
        }
        ErrorKind::MissingSubcommand => both!("", "缺少子命令").zh,
        ErrorKind::MissingRequiredArgument => both!("", "缺少必需的参数 {argument}").zh,
        ErrorKind::InvalidValue if value.is_empty() => both!("", "{argument} 需要一个值").zh,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let valid = context(ContextKind::ValidValue);
            let choices = if valid.is_empty() { String::new() } else { both!("", "；可选：{valid}").zh };
            both!("", "{argument} 的值 {value} 无效{choices}").zh
        }
        ErrorKind::ArgumentConflict => {
            let other = context(ContextKind::PriorArg);
            both!("", "{argument} 不能与 {other} 同时使用").zh
        }
        _ => return justtrain_proto::v1::Text { zh: en.clone(), en },
    };
    let meant = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg, ContextKind::SuggestedValue];
    let meant = meant.map(context).into_iter().find(|meant| !meant.is_empty());
    let meant = meant.map_or_else(String::new, |meant| both!("", "；是否想写 {meant}？").zh);
    justtrain_proto::v1::Text { en, zh: both!("", "{zh}{meant}；用 --help 查看用法").zh }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(arguments: &[&str], lang: Lang) -> Failure {
        match parse(arguments, lang) {
            Err(NoCommand::Wrong(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        command(Lang::En).debug_assert();
        command(Lang::Zh).debug_assert();
    }

    #[test]
    fn every_verb_parses() {
        for line in [
            "doctor",
            "models pull a/b --accept-license",
            "models list",
            "models rm a/b",
            "data check d.json --model m",
            "data preview d.json --rows 2",
            "data generate numbers --count 10 --seed 1 --lang zh",
            "recipe schema",
            "recipe check r.yaml",
            "train r.yaml --detach",
            "train r.yaml --dry-check --json",
            "jobs list",
            "jobs show latest",
            "jobs watch abc",
            "jobs cancel abc",
            "jobs resume abc",
            "validate latest --data d.json --max-samples 4 --max-new-tokens 8",
            "export latest --format peft --output out",
            "export --model m --adapter a --format merged --output out",
            "generate --input p.jsonl --output a.jsonl --job latest --base --temperature 0.5 --top-p 0.9 --seed 3",
            "chat --model m",
            "daemon start",
            "daemon stop",
            "daemon status --addr 127.0.0.1:9",
        ] {
            for lang in [Lang::En, Lang::Zh] {
                let arguments = std::iter::once("justtrain").chain(line.split(' '));
                assert!(parse(arguments, lang).is_ok(), "{line}");
            }
        }
    }

    #[test]
    fn the_language_of_the_data_is_not_that_of_the_output() {
        let cli = |line: &str| parse(line.split(' '), Lang::En).unwrap();
        let both = cli("justtrain data generate numbers --lang zh --language en");
        assert_eq!((both.ui().lang, both.lang), (Lang::En, None));
        assert_eq!(cli("justtrain jobs list --language zh").ui().lang, Lang::Zh);
        assert_eq!(cli("justtrain --lang zh data generate numbers").ui().lang, Lang::Zh);
    }

    #[test]
    fn a_wrong_command_line_is_exit_code_2_in_both_languages() {
        let failure = wrong(&["justtrain", "train"], Lang::Zh);
        assert_eq!(failure.exit as u8, 2);
        assert!(failure.message.en.contains("RECIPE"), "{}", failure.message.en);
        assert!(failure.message.zh.contains("RECIPE") && failure.message.zh.contains("缺少"), "{}", failure.message.zh);
        for (written, meant) in [("trian r.yaml", "train"), ("train r.yaml --detatch", "--detach")] {
            let failure = wrong(&["justtrain"].into_iter().chain(written.split(' ')).collect::<Vec<_>>(), Lang::Zh);
            assert!(failure.message.zh.contains(&format!("是否想写 {meant}？")), "{}", failure.message.zh);
        }
        wrong(&["justtrain", "export", "latest", "--format", "zip"], Lang::En);
        wrong(&["justtrain", "chat", "--job", "a", "--model", "b"], Lang::En);
    }
}
