//! What the person reads, in their language. A reader that has gone away stops nothing.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use justtrain_worker_api::{Problem, Text};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Say {
    chinese: bool,
}

impl Say {
    /// `JUSTTRAIN_LANG`, then the locale.
    pub(crate) fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let language = ["JUSTTRAIN_LANG", "LC_ALL", "LC_MESSAGES", "LANG"].into_iter().find_map(set);
        Self { chinese: language.is_some_and(|language| language.starts_with("zh")) }
    }

    #[cfg(test)]
    pub(crate) fn english() -> Self {
        Self { chinese: false }
    }

    pub(crate) fn pick<'a>(&self, text: &'a Text) -> &'a str {
        if self.chinese && !text.zh.is_empty() { &text.zh } else { &text.en }
    }

    pub(crate) fn line(&self, en: impl AsRef<str>, zh: impl AsRef<str>) {
        let _ = writeln!(io::stdout(), "{}", if self.chinese { zh.as_ref() } else { en.as_ref() });
    }

    pub(crate) fn step(&self, en: impl AsRef<str>, zh: impl AsRef<str>) {
        let _ = writeln!(io::stdout());
        self.line(en, zh);
    }

    pub(crate) fn warning(&self, en: impl AsRef<str>, zh: impl AsRef<str>) {
        let _ = writeln!(io::stderr(), "{}", if self.chinese { zh.as_ref() } else { en.as_ref() });
    }

    pub(crate) fn problem(&self, problem: &Problem) {
        if !self.chinese {
            let _ = writeln!(io::stderr(), "{problem}");
            return;
        }
        let file = problem.file.as_ref().map(|file| format!("{file}：")).unwrap_or_default();
        let found = problem.found.as_ref().map(|found| format!("（{found}）")).unwrap_or_default();
        let fix = if problem.fix.is_empty() { String::new() } else { format!("；解决办法：{}", problem.fix.zh) };
        let _ = writeln!(io::stderr(), "{file}{}{found}{fix}", problem.message.zh);
    }

    /// A bar in bytes; hidden where nobody watches.
    pub(crate) fn bar(&self, total: u64) -> ProgressBar {
        if !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("  {bar:30} {bytes}/{total_bytes}  {wide_msg}");
        ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    pub(crate) fn wait_for_enter(&self) {
        self.step("Press Enter to close this window.", "按回车键关闭窗口。");
        let _ = io::stdin().read_line(&mut String::new());
    }
}
