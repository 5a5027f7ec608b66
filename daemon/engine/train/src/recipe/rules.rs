//! What the schema cannot say: keys that do not go together, and numbers that mean two things.

use justtrain_worker_api::{DevicePick, Problem, ProblemCode};

use super::check::Written;
use super::{
    OneOrMany, Precision, QuantizationType, Recipe, adapter_rules, classification_rules, distillation_rules,
    optimizer_rules, preference_rules, regularization_rules, schedule_rules, tasks, trainable_rules, validation_rules,
};

/// What is refused, and what is only remarked on. A rule looks at keys that are written and well-formed, so that one mistake is
/// reported once.
pub(super) fn check(recipe: &Recipe, written: &Written) -> (Vec<Problem>, Vec<Problem>) {
    let errors = [
        share_or_count("val_size", recipe.val_size),
        share_or_count("warmup_steps", recipe.warmup_steps),
        max_steps(recipe),
        one_warmup(written),
        prompt_and_history(recipe),
        dataset_names(recipe),
        recipe.chat_template().err(),
        quantization_bit(recipe),
        quantization_type(recipe),
        double_quantization(recipe),
        gguf_precision(recipe),
        full_in_fewer_bits(recipe),
        full_in_16_bits(recipe),
        loss_scale(recipe, written),
        device(recipe),
        no_layers(recipe),
    ];
    let errors = errors.into_iter().flatten().chain(adapter_rules::errors(recipe));
    let errors = errors.chain(schedule_rules::errors(recipe, written)).chain(optimizer_rules::errors(recipe));
    let errors =
        errors.chain(trainable_rules::errors(recipe, written)).chain(validation_rules::errors(recipe, written));
    let errors = errors.chain(regularization_rules::errors(recipe)).chain(preference_rules::errors(recipe));
    let errors = errors.chain(tasks::errors(recipe)).chain(distillation_rules::errors(recipe));
    let errors = errors.chain(classification_rules::errors(recipe));
    let warnings = [long_warmup(recipe), epochs_unused(recipe, written)].into_iter().flatten();
    let warnings = warnings.chain(adapter_rules::warnings(recipe)).chain(schedule_rules::warnings(recipe));
    let warnings = warnings.chain(optimizer_rules::warnings(recipe)).chain(validation_rules::warnings(recipe));
    let warnings = warnings.chain(preference_rules::warnings(recipe));
    (place(errors, written), place(warnings, written))
}

/// Adds line and column; drops what is about a key that is not there or is reported already.
pub(super) fn place(problems: impl IntoIterator<Item = Problem>, written: &Written) -> Vec<Problem> {
    let place = |problem: Problem| {
        let mark = written.mark(problem.key.as_deref()?)?;
        Some(problem.at(mark.line, mark.column))
    };
    problems.into_iter().filter_map(place).collect()
}

pub(super) fn invalid(key: &str, en: &str, zh: &str) -> Problem {
    Problem::error(ProblemCode::InvalidValue, en, zh).key(key)
}

/// The last line of the error says what is wrong; those before draw it.
pub(super) fn no_regex(key: &str, pattern: &str, error: &regex::Error) -> Problem {
    let reason = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
    invalid(key, "this is not a regular expression", "这不是正确的正则表达式")
        .found(format!("{pattern}: {reason}"))
        .fix(
            "write a part of the names, such as q_proj; put a backslash before a dot",
            "写名字的一部分，例如 q_proj；点号前加反斜杠",
        )
}

pub(super) fn share_or_count(key: &str, value: f64) -> Option<Problem> {
    (value > 1.0 && value.fract() != 0.0).then(|| {
        invalid(key, "from 1 on this is a count, which has no fraction", "大于等于 1 时表示个数，不能有小数")
            .found(value)
            .expected("number < 1 | integer ≥ 1")
            .fix("write a share below 1 or a whole number", "写小于 1 的比例，或一个整数")
    })
}

fn max_steps(recipe: &Recipe) -> Option<Problem> {
    (recipe.max_steps == 0).then(|| {
        invalid("max_steps", "no step at all would be trained", "一步也不会训练")
            .found(0)
            .expected("-1 | integer ≥ 1")
            .fix("write -1 for no limit, or a number of steps", "不限步数请写 -1，否则写步数")
    })
}

fn one_warmup(written: &Written) -> Option<Problem> {
    written.mark("warmup_steps").map(|_| {
        invalid(
            "warmup_ratio",
            "warmup_steps is there as well, and only one of the two can hold",
            "已经写了 warmup_steps，两者只能写一个",
        )
        .fix("keep one of the two lines", "只保留其中一行")
    })
}

fn prompt_and_history(recipe: &Recipe) -> Option<Problem> {
    (recipe.train_on_prompt && recipe.mask_history).then(|| {
        invalid(
            "mask_history",
            "mask_history leaves earlier turns out of the loss, train_on_prompt counts them",
            "mask_history 不计历史轮次的损失，而 train_on_prompt 要计入",
        )
        .fix("switch one of the two off", "关闭其中一项")
    })
}

fn dataset_names(recipe: &Recipe) -> Option<Problem> {
    let blank = match &recipe.dataset {
        OneOrMany::One(file) => file.trim().is_empty(),
        OneOrMany::Many(files) => files.is_empty() || files.iter().any(|file| file.trim().is_empty()),
    };
    blank.then(|| {
        invalid("dataset", "a file name is empty", "文件名为空")
            .fix("name a JSON or JSONL file", "写上一个 JSON 或 JSONL 文件")
    })
}

fn quantization_bit(recipe: &Recipe) -> Option<Problem> {
    let bits = recipe.quantization_bit?;
    if recipe.quantization_type == Some(QuantizationType::Gguf) {
        return Some(
            invalid("quantization_bit", "the GGUF file says how many bits its blocks have", "位数由 GGUF 文件本身决定")
                .found(bits)
                .fix("remove this line, or quantization_type: gguf", "删除这一行，或删除 quantization_type: gguf"),
        );
    }
    (bits != 4 && bits != 8).then(|| {
        invalid("quantization_bit", "weights can be kept in 4 or in 8 bits", "权重只能以 4 位或 8 位保存")
            .found(bits)
            .expected("4 | 8")
            .fix("write 4 or 8", "写 4 或 8")
    })
}

fn quantization_type(recipe: &Recipe) -> Option<Problem> {
    let (kind, needed) = match recipe.quantization_type? {
        QuantizationType::Nf4 => ("nf4", 4),
        QuantizationType::Int8 => ("int8", 8),
        QuantizationType::Gguf => return None,
    };
    // Other widths are reported where they stand.
    let elsewhere = matches!(recipe.quantization_bit, Some(bits) if bits == needed || (bits != 4 && bits != 8));
    (!elsewhere).then(|| {
        invalid(
            "quantization_type",
            &format!("{kind} goes with quantization_bit: {needed} alone"),
            &format!("{kind} 只能与 quantization_bit: {needed} 一起使用"),
        )
        .found(kind)
        .fix(
            format!("write quantization_bit: {needed}, or remove this line"),
            format!("写 quantization_bit: {needed}，或删除这一行"),
        )
    })
}

fn double_quantization(recipe: &Recipe) -> Option<Problem> {
    let written = recipe.double_quantization?;
    (recipe.quantization() != Some(QuantizationType::Nf4)).then(|| {
        invalid(
            "double_quantization",
            "only nf4 has scales that can be quantised again",
            "只有 nf4 的缩放系数可以再次量化",
        )
        .found(written)
        .fix("write quantization_bit: 4, or remove this line", "写 quantization_bit: 4，或删除这一行")
    })
}

fn gguf_precision(recipe: &Recipe) -> Option<Problem> {
    let kept = recipe.quantization_type == Some(QuantizationType::Gguf);
    (kept && recipe.precision != Precision::Auto).then(|| {
        invalid(
            "precision",
            "quantization_type: gguf keeps every weight as the file has it",
            "quantization_type: gguf 会原样保留文件中的所有权重",
        )
        .fix("remove this line", "删除这一行")
    })
}

fn device(recipe: &Recipe) -> Option<Problem> {
    recipe.device.parse::<DevicePick>().is_err().then(|| {
        invalid("device", "there is no such device", "没有这样的设备")
            .found(format!("\"{}\"", recipe.device))
            .expected("auto | cpu | cuda:0")
            .fix("write auto, cpu, or cuda: and the number of a GPU", "写 auto、cpu，或 cuda: 加显卡编号")
    })
}

fn no_layers(recipe: &Recipe) -> Option<Problem> {
    recipe.layers_to_transform().is_some_and(<[usize]>::is_empty).then(|| {
        invalid("layers_to_transform", "an empty list would train nothing", "空列表表示什么也不训练")
            .fix("name blocks, or remove this line", "写出块的编号，或删除这一行")
    })
}

fn long_warmup(recipe: &Recipe) -> Option<Problem> {
    let limit = recipe.max_steps as f64;
    let warms_up = recipe.lr_scheduler_type.warms_up();
    (warms_up && limit > 0.0 && recipe.warmup_ratio.is_none() && recipe.warmup_steps >= limit).then(|| {
        Problem::warning(
            ProblemCode::InvalidValue,
            "the learning rate is still rising at the last step",
            "直到最后一步学习率仍在预热上升",
        )
        .key("warmup_steps")
        .found(recipe.warmup_steps)
        .expected(format!("< max_steps {limit}"))
    })
}

fn epochs_unused(recipe: &Recipe, written: &Written) -> Option<Problem> {
    (recipe.max_steps > 0 && written.mark("max_steps").is_some()).then(|| {
        Problem::warning(
            ProblemCode::InvalidValue,
            "max_steps decides; num_train_epochs is not used",
            "以 max_steps 为准，num_train_epochs 不起作用",
        )
        .key("num_train_epochs")
        .fix("remove one of the two lines", "删除其中一行")
    })
}

/// Weights that are trained have 32 or 16 bits.
fn full_in_fewer_bits(recipe: &Recipe) -> Option<Problem> {
    if !recipe.trains_weights() {
        return None;
    }
    let method = recipe.finetuning_type.name();
    let (key, found) = match (recipe.quantization_bit, recipe.quantization_type) {
        (Some(bits), _) => ("quantization_bit", bits.to_string()),
        (None, Some(kind)) => ("quantization_type", format!("{kind:?}").to_lowercase()),
        (None, None) => return None,
    };
    Some(
        invalid(
            key,
            &format!("finetuning_type {method} trains the weights themselves, which cannot be quantised"),
            &format!("finetuning_type 为 {method} 时训练模型自身的权重，权重不能量化"),
        )
        .found(found)
        .fix("remove this line, or write finetuning_type: lora", "删除这一行，或写 finetuning_type: lora"),
    )
}

fn loss_scale(recipe: &Recipe, written: &Written) -> Option<Problem> {
    let key = ["initial_scale_power", "loss_scale_window"].into_iter().find(|key| written.mark(key).is_some())?;
    (!recipe.has_loss_scale()).then(|| {
        invalid(key, "losses are scaled with precision: fp16 only", "只有 precision: fp16 才会缩放损失")
            .expected("precision: fp16")
            .fix("write precision: fp16, or remove this line", "写 precision: fp16，或删除这一行")
    })
}

/// Gradients need a block's weights in `f32`: with a graph for every block there would be two copies of all of them.
fn full_in_16_bits(recipe: &Recipe) -> Option<Problem> {
    let method = recipe.finetuning_type.name();
    (recipe.trains_weights() && recipe.precision == Precision::Bf16 && !recipe.gradient_checkpointing).then(|| {
        invalid(
            "precision",
            &format!("with finetuning_type {method}, bf16 saves memory only where one block after the other is widened to float32"),
            &format!("finetuning_type 为 {method} 时，只有逐块展开为 float32，bf16 才能节省内存"),
        )
        .found("bf16 without gradient_checkpointing")
        .expected("gradient_checkpointing: true")
        .fix("add gradient_checkpointing: true, or remove this line", "加上 gradient_checkpointing: true，或删除这一行")
    })
}
