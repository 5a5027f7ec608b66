//! Shows a job's events: a bar with a line above it for what is worth keeping, or plain lines where nobody watches.

use indicatif::{ProgressBar, ProgressStyle};
use justtrain_proto::v1::job_event::Event;
use justtrain_proto::v1::{
    Job, JobEvent, JobState, Rewards, Started, Step, StepSkipped, TaskScore, TaskScores, ValidationLoss,
};

use crate::show;
use crate::text::{Lang, say};
use crate::ui::Ui;

/// Plain lines: at most this many steps between two.
const LONGEST_INTERVAL: u64 = 10;
/// Rows of a skipped step that are named.
const ROWS_SHOWN: usize = 20;

pub(crate) struct TrainView {
    ui: Ui,
    bar: Option<ProgressBar>,
    /// The step of the newest plain line.
    printed: u64,
}

impl TrainView {
    pub(crate) fn new(ui: Ui) -> Self {
        let bar = ui.is_live().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { ui, bar, printed: 0 }
    }

    pub(crate) fn event(&mut self, event: &JobEvent) {
        let lang = self.ui.lang;
        match &event.event {
            Some(Event::Step(step)) => self.step(step),
            Some(Event::Started(started)) => self.started(started),
            Some(Event::Phase(phase)) => self.phase(&phase.phase),
            Some(Event::StateChanged(change)) => {
                if let Some(line) = change.job.as_ref().and_then(|job| state_line(job, lang)) {
                    self.line(&line);
                }
            }
            Some(Event::Skipped(skipped)) => self.line(&self.ui.yellow(skipped_line(skipped, lang))),
            Some(Event::Validation(validation)) => {
                let (step, loss) = (validation.step, validation.loss);
                let rewards = validation.rewards.as_ref().map(|rewards| preferences(rewards, lang)).unwrap_or_default();
                let tokens = tokens(validation, lang);
                self.line(&say!(
                    lang,
                    "step {step}: validation loss {loss:.4}{rewards}{tokens}",
                    "第 {step} 步：验证损失 {loss:.4}{rewards}{tokens}"
                ));
            }
            // Of a step only beside a line of its own.
            Some(Event::Tasks(scores)) if scores.validation || (self.bar.is_none() && scores.step == self.printed) => {
                self.line(&task_line(scores, lang));
            }
            Some(Event::Tasks(_)) => {}
            Some(Event::Checkpoint(checkpoint)) => {
                let (step, path) = (checkpoint.step, &checkpoint.path);
                self.line(&say!(
                    lang,
                    "step {step}: checkpoint saved in {path}",
                    "第 {step} 步：检查点已保存到 {path}"
                ));
            }
            Some(Event::Log(log)) => {
                let text = lang.pick_opt(&log.text);
                match log.level.as_str() {
                    "error" => self.line(&self.ui.red(text)),
                    "warning" => self.line(&self.ui.yellow(text)),
                    _ => self.line(text),
                }
            }
            Some(Event::Bookmark(_)) | None => {}
        }
    }

    pub(crate) fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, step: &Step) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(step.total_steps);
                bar.set_position(step.step);
                bar.set_message(numbers(step, self.ui.lang));
            }
            None if is_due(step, self.printed) => {
                self.printed = step.step;
                let (position, total, numbers) = (step.step, step.total_steps, numbers(step, self.ui.lang));
                self.line(&say!(
                    self.ui.lang,
                    "step {position}/{total}  {numbers}",
                    "第 {position}/{total} 步  {numbers}"
                ));
            }
            None => {}
        }
    }

    fn started(&self, started: &Started) {
        let lang = self.ui.lang;
        let Started { total_steps, epochs, train_rows, validation_rows, device, .. } = started;
        let trainable = show::count(started.trainable_parameters);
        let share = show::percent(started.trainable_parameters as f64 / started.total_parameters.max(1) as f64);
        self.line(&say!(
            lang,
            "{train_rows} rows to train on, {validation_rows} held out; {total_steps} steps, {epochs:.2} epochs on {device}; training {trainable} parameters ({share})",
            "训练 {train_rows} 条，留出 {validation_rows} 条；共 {total_steps} 步，{epochs:.2} 轮，设备 {device}；训练 {trainable} 个参数（{share}）"
        ));
        if let Some(bar) = &self.bar {
            bar.set_length(started.total_steps);
            bar.set_position(started.first_step);
        }
    }

    fn phase(&self, phase: &str) {
        let lang = self.ui.lang;
        let name = match phase {
            "loading_model" => say!(lang, "loading the model", "正在加载模型"),
            "tokenizing" => say!(lang, "tokenizing the data", "正在对数据分词"),
            "training" => say!(lang, "training", "正在训练"),
            "evaluating" => say!(lang, "evaluating", "正在评估"),
            "generating" => say!(lang, "generating", "正在生成"),
            "saving" => say!(lang, "saving", "正在保存"),
            other => other.to_owned(),
        };
        match &self.bar {
            Some(bar) => bar.set_message(name),
            None => self.line(&name),
        }
    }

    /// A line that stays; the bar is drawn again below it.
    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.ui.line(line)),
            None => self.ui.line(line),
        }
    }
}

fn numbers(step: &Step, lang: Lang) -> String {
    let stage = step.stage.as_ref().map(|stage| show::stage(stage, lang) + "  ").unwrap_or_default();
    let Step { loss, learning_rate, tokens_per_second, .. } = step;
    let left = show::duration(step.seconds_left, lang);
    let rewards = step.rewards.as_ref().map(|rewards| preferences(rewards, lang)).unwrap_or_default();
    say!(
        lang,
        "{stage}loss {loss:.4}{rewards}  lr {learning_rate:.2e}  {tokens_per_second:.0} tokens/s  {left} left",
        "{stage}损失 {loss:.4}{rewards}  学习率 {learning_rate:.2e}  {tokens_per_second:.0} 词元/秒  剩余 {left}"
    )
}

/// Each task with its loss, and what of accuracy and weight there is.
fn task_line(scores: &TaskScores, lang: Lang) -> String {
    let of_task = |task: &TaskScore| {
        let TaskScore { name, loss, .. } = task;
        let accuracy = task.token_accuracy.map(|share| format!(" {}", show::percent(share))).unwrap_or_default();
        let weight = task.weight.map(|weight| format!(" × {weight:.2}")).unwrap_or_default();
        let metric = match (task.metric.as_deref(), task.value) {
            (Some("perplexity"), Some(value)) => say!(lang, " perplexity {value:.2}", " 困惑度 {value:.2}"),
            (Some("exact_match"), Some(value)) => {
                let share = show::percent(value);
                say!(lang, " exact match {share}", " 完全匹配 {share}")
            }
            _ => String::new(),
        };
        format!("{name} {loss:.4}{accuracy}{metric}{weight}")
    };
    let (step, tasks) = (scores.step, scores.tasks.iter().map(of_task).collect::<Vec<_>>().join("  "));
    match scores.validation {
        true => say!(lang, "step {step}: validation by task: {tasks}", "第 {step} 步：各任务验证：{tasks}"),
        false => say!(lang, "step {step}: by task: {tasks}", "第 {step} 步：各任务：{tasks}"),
    }
}

fn skipped_line(skipped: &StepSkipped, lang: Lang) -> String {
    let StepSkipped { step, in_a_row, limit, .. } = skipped;
    if let Some(scale) = skipped.loss_scale {
        return say!(
            lang,
            "step {step} skipped: a gradient was too large for float16; the loss is now scaled by {scale}",
            "第 {step} 步已跳过：梯度超出 float16 的范围；损失缩放系数现为 {scale}"
        );
    }
    let more = if skipped.rows.len() > ROWS_SHOWN { ", …" } else { "" };
    let rows: Vec<String> = skipped.rows.iter().take(ROWS_SHOWN).map(u64::to_string).collect();
    let rows = rows.join(", ") + more;
    let what = match skipped.loss_is_finite {
        true => say!(lang, "the gradient", "梯度"),
        false => say!(lang, "the loss", "损失"),
    };
    say!(
        lang,
        "step {step} skipped: {what} is not a finite number ({in_a_row} of at most {limit} in a row); data rows {rows}",
        "第 {step} 步已跳过：{what}不是有限数值（连续第 {in_a_row} 次，最多 {limit} 次）；数据行 {rows}"
    )
}

/// What a validation says of tokens; a reward model says nothing of them.
fn tokens(validation: &ValidationLoss, lang: Lang) -> String {
    let (perplexity, accuracy) = (validation.perplexity, show::percent(validation.token_accuracy));
    if perplexity == 0.0 {
        return String::new();
    }
    say!(
        lang,
        ", perplexity {perplexity:.2}, token accuracy {accuracy}",
        "，困惑度 {perplexity:.2}，词元准确率 {accuracy}"
    )
}

/// What follows a loss where preferences are learnt.
fn preferences(rewards: &Rewards, lang: Lang) -> String {
    let accuracy = show::percent(rewards.accuracy);
    let margin = rewards.margin.map(|margin| say!(lang, ", margin {margin:.3}", "，差距 {margin:.3}"));
    let margin = margin.unwrap_or_default();
    say!(lang, " (right {accuracy}{margin})", "（判断正确 {accuracy}{margin}）")
}

/// Short runs get about twenty lines, long ones a line every ten steps. A resumed job may go back behind the last line.
fn is_due(step: &Step, printed: u64) -> bool {
    let interval = (step.total_steps / 20).clamp(1, LONGEST_INTERVAL);
    printed == 0 || step.step == step.total_steps || step.step < printed || step.step >= printed + interval
}

/// The end of a job is told by its result; here are the states on the way.
fn state_line(job: &Job, lang: Lang) -> Option<String> {
    let (position, attempt) = (job.queue_position, job.attempt);
    match job.state() {
        JobState::Queued if position > 1 => {
            Some(say!(lang, "queued, number {position} in line", "排队中，第 {position} 位"))
        }
        JobState::Queued => Some(say!(lang, "queued", "排队中")),
        JobState::Running if attempt > 1 => Some(say!(lang, "running, attempt {attempt}", "运行中，第 {attempt} 次")),
        JobState::Running => Some(say!(lang, "running", "运行中")),
        JobState::Cancelling => Some(say!(lang, "stopping; saving a checkpoint", "正在停止并保存检查点")),
        JobState::Interrupted => Some(say!(lang, "interrupted", "已中断")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use justtrain_proto::v1::Stage;

    use super::*;

    fn printed(steps: impl Iterator<Item = u64>, total_steps: u64) -> Vec<u64> {
        let mut lines = Vec::new();
        for step in steps {
            if is_due(&Step { step, total_steps, ..Step::default() }, lines.last().copied().unwrap_or(0)) {
                lines.push(step);
            }
        }
        lines
    }

    #[test]
    fn plain_lines_come_at_an_interval_and_at_both_ends() {
        assert_eq!(printed(1..=3, 3), [1, 2, 3]);
        assert_eq!(printed(1..=205, 205)[..3], [1, 11, 21]);
        assert_eq!(printed(1..=205, 205).last(), Some(&205));
        assert_eq!(printed((1..=30).chain(5..=20), 1000), [1, 11, 21, 5, 15]);
    }

    #[test]
    fn each_task_is_named_with_its_loss() {
        let task = |name: &str, token_accuracy, weight| TaskScore {
            name: name.to_owned(),
            loss: 0.5,
            token_accuracy,
            weight,
            ..TaskScore::default()
        };
        let step = TaskScores {
            step: 3,
            validation: false,
            tasks: vec![task("sums", None, Some(1.25)), task("chat", None, None)],
        };
        assert_eq!(task_line(&step, Lang::En), "step 3: by task: sums 0.5000 × 1.25  chat 0.5000");
        let validation = TaskScores { validation: true, tasks: vec![task("sums", Some(0.25), None)], ..step };
        assert_eq!(task_line(&validation, Lang::Zh), "第 3 步：各任务验证：sums 0.5000 25.0%");
        let judged = |metric: &str| {
            let task =
                TaskScore { metric: Some(metric.to_owned()), value: Some(0.5), ..task("sums", Some(0.25), None) };
            task_line(&TaskScores { tasks: vec![task], ..validation.clone() }, Lang::En)
        };
        assert!(judged("exact_match").ends_with("sums 0.5000 25.0% exact match 50.0%"));
        assert!(judged("perplexity").ends_with("25.0% perplexity 0.50") && judged("loss").ends_with("25.0%"));
    }

    #[test]
    fn a_skipped_step_names_itself_its_rows_and_the_limit() {
        let skipped =
            StepSkipped { step: 7, loss_is_finite: false, rows: vec![3, 9], in_a_row: 2, limit: 5, loss_scale: None };
        let line = skipped_line(&skipped, Lang::En);
        assert_eq!(line, "step 7 skipped: the loss is not a finite number (2 of at most 5 in a row); data rows 3, 9");
        let many = StepSkipped { rows: (1..=40).collect(), loss_is_finite: true, ..skipped };
        let line = skipped_line(&many, Lang::Zh);
        assert!(line.contains("梯度不是有限数值") && line.ends_with("19, 20, …"), "{line}");
        let overflow = StepSkipped { step: 8, loss_scale: Some(32768.0), ..StepSkipped::default() };
        assert!(skipped_line(&overflow, Lang::En).ends_with("now scaled by 32768"));
    }

    #[test]
    fn a_step_says_which_stage_it_is_of() {
        let stage = Stage { name: "answers".to_owned(), number: 2, count: 3 };
        let step = Step { loss: 0.5, stage: Some(stage), ..Step::default() };
        assert!(numbers(&step, Lang::En).starts_with("stage 2/3 answers  loss 0.5000"), "{}", numbers(&step, Lang::En));
        assert!(numbers(&step, Lang::Zh).starts_with("阶段 2/3 answers  损失 0.5000"));
    }

    #[test]
    fn preferences_are_shown_beside_the_loss() {
        let rewards = Rewards { accuracy: 0.75, margin: Some(0.5), ..Rewards::default() };
        let step = Step { loss: 0.5, rewards: Some(rewards), ..Step::default() };
        assert!(numbers(&step, Lang::En).starts_with("loss 0.5000 (right 75"), "{}", numbers(&step, Lang::En));
        assert!(numbers(&step, Lang::Zh).contains("差距 0.500"));
        assert!(numbers(&Step::default(), Lang::En).starts_with("loss 0.0000  lr"));
    }

    #[test]
    fn steps_that_come_rarely_are_all_shown() {
        assert_eq!(printed([7, 21, 35].into_iter(), 100), [7, 21, 35]);
    }
}
