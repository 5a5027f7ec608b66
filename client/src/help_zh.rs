//! The help texts in Chinese, looked up by their English. A test fails when one is missing.

use clap::builder::StyledStr;

const TEMPLATE: &str = "{about-with-newline}\n用法：{usage}\n\n{all-args}";

#[rustfmt::skip]
const TRANSLATIONS: &[(&str, &str)] = &[
    ("Fine-tune language models on your own data", "用自己的数据微调语言模型"),
    ("Print help", "显示帮助"),
    ("Print version", "显示版本"),
    ("Print one JSON object on the last line of standard output", "在标准输出的最后一行打印一个 JSON 对象"),
    ("Language of the output", "输出的语言"),
    ("Short for --language, before the verb; `data generate` has a `--lang` of its own", "--language 的简写，写在命令之前"),
    ("Language of the data; by default that of the output", "数据的语言；默认与输出的语言相同"),
    ("Address of the daemon", "守护进程的地址"),
    // Verbs.
    ("Check this machine, with a fix for what is wrong", "检查本机环境，并给出解决办法"),
    ("Find, fetch, list, verify and remove base models", "查找、获取、列出、校验、删除基础模型"),
    ("Look for models on the hubs", "在模型社区中查找模型"),
    ("Words of a model's name", "模型名称中的词"),
    ("At most this many from each hub", "每个社区最多的条数"),
    ("Show a model: what is stored, or what a pull would fetch", "显示一个模型：已有的内容，或将要下载的内容"),
    ("A name that `models list` or `models search` shows", "models list 或 models search 显示的名称"),
    ("Only files like this, such as *Q4_K_M.gguf; may be repeated", "只要这样的文件，例如 *Q4_K_M.gguf；可重复"),
    ("No files like this; may be repeated", "不要这样的文件；可重复"),
    ("Take a GGUF file or a Hugging Face folder of this machine into the store", "导入本机的 GGUF 文件或 Hugging Face 目录"),
    ("The file or folder", "文件或目录"),
    ("The name it gets, such as ORG/NAME; by default its own", "导入后的名称，例如 组织/名称；默认用原名"),
    ("Compare every file of a model with its hash", "逐个校验模型文件的哈希值"),
    ("Fetch a model; every source is tried in order", "获取模型；依次尝试各个来源"),
    ("List the models in the store", "列出已有模型"),
    ("Remove a model from the store", "删除模型"),
    ("Check, preview and generate training data", "检查、预览、生成训练数据"),
    ("Report format, rows and every problem of a data file", "报告数据文件的格式、条数和所有问题"),
    ("Show each token of some rows, and whether it counts for the loss", "显示若干条数据的每个词元，以及是否计入损失"),
    ("Write a built-in data set", "生成内置数据集"),
    ("Check recipes and print their schema", "检查配方、打印配方的模式"),
    ("Print the JSON Schema of recipes", "打印配方的 JSON Schema"),
    ("Report every problem of a recipe, without training", "报告配方的所有问题，不训练"),
    ("Train a model as a recipe says", "按配方训练模型"),
    ("List, watch, cancel and resume training jobs", "列出、查看、取消、继续训练任务"),
    ("List all jobs, newest first", "列出所有任务，最新的在前"),
    ("Show one job", "显示一个任务"),
    ("Follow a job from its first event", "从头跟踪一个任务"),
    ("Stop a job; a running one saves a checkpoint first", "停止任务；运行中的任务会先保存检查点"),
    ("Queue a stopped job again; it goes on from its newest checkpoint", "让停止的任务重新排队，从最新检查点继续"),
    ("Compare the tuned model with its base on held-out rows", "在留出数据上对比微调后的模型与原模型"),
    ("Write the result in a format that other tools load", "导出为其他工具可以加载的格式"),
    ("Answer a file of prompts", "批量回答文件中的提示"),
    ("Talk with a model", "与模型对话"),
    ("Start, stop and look at the daemon", "启动、停止、查看守护进程"),
    ("Start the daemon in the background", "在后台启动守护进程"),
    ("Stop the daemon; a running job saves a checkpoint first", "停止守护进程；运行中的任务会先保存检查点"),
    ("Show whether the daemon runs, where, and what it does", "显示守护进程是否运行、地址和任务"),
    // Arguments.
    ("A job's id, the start of its id, or `latest`", "任务编号、编号的开头，或 latest"),
    ("The output of this job: its id, the start of its id, or `latest`", "使用该任务的结果：编号、编号的开头，或 latest"),
    ("A model in the store, or a path", "已有模型的名称，或路径"),
    ("A PEFT adapter folder for --model", "用于 --model 的 PEFT 适配器目录"),
    ("A repository name, a catalogue name, a URL, or a path", "仓库名、目录中的名称、网址或路径"),
    ("Only this source: hub, mirror, modelscope, url, file or wheel", "只用这个来源：hub、mirror、modelscope、url、file 或 wheel"),
    ("Agree to the model's terms without being asked, such as Gemma's", "直接同意模型的条款（如 Gemma），不再询问"),
    ("The name that `models list` shows", "models list 显示的名称"),
    ("The data, a JSON or JSONL file", "数据，JSON 或 JSONL 文件"),
    ("alpaca, sharegpt, messages, prompt_completion, preference, kto, text or classification; recognised by default", "alpaca、sharegpt、messages、prompt_completion、preference、kto、text 或 classification；默认自动识别"),
    ("Longest row in tokens; 2048 by default", "每条数据最多的词元数；默认 2048"),
    ("How many rows", "条数"),
    ("Rows to skip", "跳过的条数"),
    ("Which data set", "哪个数据集"),
    ("Which of two numbers is larger", "比较两个数的大小"),
    ("The same seed gives the same rows", "相同的种子得到相同的数据"),
    ("File to write; by default KIND-LANG.json in this folder", "输出文件；默认为当前目录下的 KIND-LANG.json"),
    ("The recipe, a YAML file", "配方，YAML 文件"),
    ("Queue the job and return", "排队后立即返回"),
    ("Report every problem of the recipe, without training", "报告配方的所有问题，不训练"),
    ("Show the memory, disk and time that it would take, without training", "显示所需的内存、磁盘和时间，不训练"),
    ("Start even where the estimate says that it cannot fit", "即使预估放不下也启动"),
    ("A data file, instead of the rows that the job held out", "数据文件，代替任务留出的数据"),
    ("At most this many rows; all by default", "最多的条数；默认全部"),
    ("Longest answer in tokens; 128 by default", "回答最多的词元数；默认 128"),
    ("Longest answer in tokens; 256 by default", "回答最多的词元数；默认 256"),
    ("What to write", "导出格式"),
    ("The adapter alone, as Hugging Face PEFT loads it", "仅适配器，可由 Hugging Face PEFT 加载"),
    ("A whole Hugging Face model with the adapter folded in", "合并了适配器的完整 Hugging Face 模型"),
    ("Folder to write; by default `exports/FORMAT` in the job's folder", "输出目录；默认为任务目录下的 exports/FORMAT"),
    ("JSONL with {\"prompt\"} or {\"messages\"} rows", "JSONL，每行含 {\"prompt\"} 或 {\"messages\"}"),
    ("JSONL to write: each row with its \"answer\"", "要写的 JSONL：每行附上 \"answer\""),
    ("Answer with the base model, the adapter switched off", "关闭适配器，用原模型回答"),
    ("Start with the base model, the adapter switched off", "一开始关闭适配器，用原模型回答"),
    ("0 always takes the most probable token", "0 表示总取概率最大的词元"),
    ("Sample among the most probable tokens that together reach this share", "只在累计概率达到该值的词元中采样"),
    ("The same seed gives the same answers", "相同的种子得到相同的回答"),
];

/// `command` and everything below it, in Chinese.
pub(crate) fn translate(command: clap::Command) -> clap::Command {
    let about = command.get_about().map(chinese);
    let mut command = command
        .help_template(TEMPLATE)
        .subcommand_help_heading("命令")
        .subcommand_value_name("命令")
        .disable_help_subcommand(true)
        .mut_args(|arg| {
            let heading = if arg.is_positional() { "参数" } else { "选项" };
            let help = described(&arg);
            // What clap adds to a help text by itself is English.
            arg.help_heading(heading).help(help).hide_possible_values(true).hide_default_value(true).hide_env(true)
        })
        .mut_subcommands(translate);
    if let Some(about) = about {
        command = command.about(about);
    }
    command
}

/// The help text with what clap would add: choices, default, environment variable.
fn described(arg: &clap::Arg) -> String {
    let mut help = arg.get_help().map(chinese).unwrap_or_default();
    let choices = arg.get_possible_values().into_iter().map(|choice| match choice.get_help() {
        Some(help) => format!("{}（{}）", choice.get_name(), chinese(help)),
        None => choice.get_name().to_owned(),
    });
    let choices = choices.collect::<Vec<_>>().join("、");
    if !choices.is_empty() {
        help += &format!("；可选：{choices}");
    }
    let default = arg.get_default_values().first().filter(|_| arg.get_action().takes_values());
    if let Some(default) = default.filter(|_| !arg.is_hide_default_value_set()) {
        help += &format!("；默认 {}", default.display());
    }
    if let Some(variable) = arg.get_env() {
        help += &format!("；环境变量 {}", variable.display());
    }
    help
}

fn chinese(english: &StyledStr) -> String {
    let english = english.to_string();
    let found = TRANSLATIONS.iter().find(|(known, _)| *known == english);
    found.map_or(english, |(_, chinese)| (*chinese).to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn texts(command: &clap::Command, into: &mut Vec<String>) {
        into.extend(command.get_about().map(ToString::to_string));
        into.extend(command.get_arguments().filter_map(|arg| arg.get_help().map(ToString::to_string)));
        let choices = command.get_arguments().flat_map(clap::Arg::get_possible_values);
        into.extend(choices.filter_map(|choice| choice.get_help().map(ToString::to_string)));
        command.get_subcommands().for_each(|below| texts(below, into));
    }

    #[test]
    fn a_translated_help_has_its_choices_and_defaults_in_chinese() {
        let mut command = translate(Cli::command());
        let root = command.render_long_help().to_string();
        let mut of = |verb: &str| command.find_subcommand_mut(verb).unwrap().render_long_help().to_string();
        let (export, chat) = (of("export"), of("chat"));
        assert!(export.contains("可选：peft（仅适配器，可由 Hugging Face PEFT 加载）、merged（"), "{export}");
        assert!(chat.contains("；默认 42"), "{chat}");
        assert!(root.contains("；环境变量 JUSTTRAIN_ADDR") && root.contains("；可选：en、zh"), "{root}");
        let all = [root, export, chat].concat();
        assert!(!["ossible values", "[default", "[env"].iter().any(|english| all.contains(english)), "{all}");
    }

    #[test]
    fn every_help_text_has_its_chinese() {
        let mut english = Vec::new();
        texts(&Cli::command(), &mut english);
        let missing: Vec<_> =
            english.iter().filter(|text| TRANSLATIONS.iter().all(|(known, _)| known != *text)).collect();
        assert!(missing.is_empty(), "{missing:#?}");
        assert!(english.len() > 50);
    }
}
