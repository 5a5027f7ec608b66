//! Whether a job fits, and what to change in its recipe where it does not: each change alone, then the gentlest that are
//! enough together, each judged by the same prediction.

use justtrain_model::WeightFormat;
use justtrain_worker_api::{Problem, ProblemCode, Remedy, Room, Text};

use super::{Job, Prediction};
use crate::optim::OptimizerType;
use crate::recipe::{FinetuningType, Precision, Recipe};

/// Below this length hardly a conversation is left.
const SHORTEST: usize = 128;

/// A recipe with something changed.
#[derive(Clone)]
struct Changed {
    recipe: Recipe,
    lines: Vec<String>,
    cost: Text,
}

/// The forms that one change of a recipe can take, the mildest first.
type Way = fn(&Recipe) -> Vec<Changed>;

/// What a job can have too little of.
struct Resource {
    code: ProblemCode,
    message: (&'static str, &'static str),
    needs: fn(&Prediction) -> u64,
    has: fn(Room) -> u64,
    /// Changes that save some of it, the gentlest first.
    ways: &'static [Way],
}

const MEMORY: Resource = Resource {
    code: ProblemCode::OutOfMemory,
    message: ("this job needs more memory than there is", "该任务所需内存超过可用内存"),
    needs: Prediction::memory_bytes,
    has: |room| room.memory_bytes,
    ways: &[smaller_batches, eight_bit_optimizer, gradient_checkpointing, sixteen_bits, quantized, lora, shorter_rows],
};

const DISK: Resource = Resource {
    code: ProblemCode::DiskFull,
    message: ("this job needs more disk space than there is", "该任务所需磁盘空间超过可用空间"),
    needs: |predicted| predicted.disk.total(),
    has: |room| room.disk_bytes,
    ways: &[fewer_checkpoints],
};

/// Why the job does not fit into `room`, and what saves how much. Nothing of either where it fits.
pub(super) fn judge(job: &Job, recipe: &Recipe, predicted: &Prediction, room: Room) -> (Vec<Problem>, Vec<Remedy>) {
    let (mut problems, mut remedies) = (Vec::new(), Vec::new());
    for resource in [MEMORY, DISK] {
        let (needs, has) = ((resource.needs)(predicted), (resource.has)(room));
        if needs > has {
            let found = Search { job, room, resource: &resource, needs }.remedies(recipe);
            problems.push(refused(&resource, needs, has, &found));
            remedies.extend(found.into_iter().map(|(remedy, _)| remedy));
        }
    }
    (problems, remedies)
}

struct Search<'a> {
    job: &'a Job,
    room: Room,
    resource: &'a Resource,
    /// By the recipe as it is.
    needs: u64,
}

/// A remedy, and what it leaves the job to need of the resource that is too little.
type Tried = (Remedy, u64);

impl Search<'_> {
    /// Each way alone; and, where none is enough, first as many of them together as it takes.
    fn remedies(&self, recipe: &Recipe) -> Vec<Tried> {
        let best = |way: &Way| self.best(way(recipe)).map(|(tried, _)| tried);
        let mut found: Vec<Tried> = self.resource.ways.iter().filter_map(best).collect();
        if found.len() > 1
            && !found.iter().any(|(remedy, _)| remedy.fits)
            && let Some(together) = self.together(recipe)
        {
            found.insert(0, together);
        }
        found
    }

    /// One way after the other until it is enough, or all of them.
    fn together(&self, recipe: &Recipe) -> Option<Tried> {
        let mut changed = Changed { recipe: recipe.clone(), lines: Vec::new(), cost: Text::default() };
        let mut last = None;
        for way in self.resource.ways {
            let forms = way(&changed.recipe).into_iter().map(|form| changed.clone().and(form)).collect();
            let Some((tried, form)) = self.best(forms) else { continue };
            changed = form;
            let enough = tried.0.fits;
            last = Some(tried);
            if enough {
                break;
            }
        }
        last
    }

    /// The mildest form that is enough, else the strongest; none where no form saves anything.
    fn best(&self, forms: Vec<Changed>) -> Option<(Tried, Changed)> {
        let mut last = None;
        for changed in forms {
            // A cut that leaves nothing to train on ends the row of ever stronger forms.
            let Some(tried) = self.attempt(&changed) else { break };
            let (enough, saves) = (tried.0.fits, tried.1 < self.needs);
            if saves {
                last = Some((tried, changed));
            }
            if enough {
                break;
            }
        }
        last
    }

    fn attempt(&self, changed: &Changed) -> Option<Tried> {
        let predicted = self.job.predict(&changed.recipe);
        let needs = (self.resource.needs)(&predicted);
        let remedy = Remedy {
            change: changed.lines.clone(),
            cost: changed.cost.clone(),
            memory_bytes: predicted.memory.map(|memory| memory.total()),
            disk_bytes: predicted.disk.total(),
            fits: needs <= (self.resource.has)(self.room),
        };
        (predicted.work.steps > 0).then_some((remedy, needs))
    }
}

impl Changed {
    fn new(recipe: Recipe, lines: impl Into<Vec<String>>, cost: Text) -> Self {
        Self { recipe, lines: lines.into(), cost }
    }

    /// This change and one that was made after it.
    fn and(self, next: Self) -> Self {
        let cost = match (self.cost.is_empty(), next.cost.is_empty()) {
            (true, _) => next.cost,
            (_, true) => self.cost,
            _ => {
                Text::new(format!("{}; {}", self.cost.en, next.cost.en), format!("{}；{}", self.cost.zh, next.cost.zh))
            }
        };
        Self { recipe: next.recipe, lines: [self.lines, next.lines].concat(), cost }
    }
}

/// Fewer rows at once, and as many more batches a step: the same training.
fn smaller_batches(recipe: &Recipe) -> Vec<Changed> {
    let (batch, accumulation) = (recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps);
    let sizes = halves(batch).filter(|size| batch.is_multiple_of(*size));
    let smaller = sizes.map(|size| {
        let mut recipe = recipe.clone();
        recipe.per_device_train_batch_size = size;
        recipe.gradient_accumulation_steps = accumulation * (batch / size);
        let lines = [
            format!("per_device_train_batch_size: {size}"),
            format!("gradient_accumulation_steps: {}", recipe.gradient_accumulation_steps),
        ];
        Changed::new(recipe, lines, Text::default())
    });
    smaller.collect()
}

fn eight_bit_optimizer(recipe: &Recipe) -> Vec<Changed> {
    if recipe.optim != OptimizerType::Adamw {
        return Vec::new();
    }
    let mut recipe = recipe.clone();
    recipe.optim = OptimizerType::Adamw8bit;
    vec![Changed::new(recipe, ["optim: adamw_8bit".to_owned()], Text::default())]
}

fn gradient_checkpointing(recipe: &Recipe) -> Vec<Changed> {
    if recipe.gradient_checkpointing {
        return Vec::new();
    }
    let mut recipe = recipe.clone();
    recipe.gradient_checkpointing = true;
    let cost = Text::new("about a third slower", "大约慢三分之一");
    vec![Changed::new(recipe, ["gradient_checkpointing: true".to_owned()], cost)]
}

fn sixteen_bits(recipe: &Recipe) -> Vec<Changed> {
    if !matches!(recipe.weight_formats().linear, WeightFormat::F32 | WeightFormat::AsStored) {
        return Vec::new();
    }
    let (mut recipe, mut lines) = (recipe.clone(), vec!["precision: bf16".to_owned()]);
    recipe.precision = Precision::Bf16;
    if recipe.trains_weights() && !recipe.gradient_checkpointing {
        recipe.gradient_checkpointing = true;
        lines.push("gradient_checkpointing: true".to_owned());
    }
    let cost = Text::new("weights are rounded to 16 bits", "权重被舍入到 16 位");
    vec![Changed::new(recipe, lines, cost)]
}

fn quantized(recipe: &Recipe) -> Vec<Changed> {
    if recipe.trains_weights() || recipe.quantization().is_some() {
        return Vec::new();
    }
    let mut recipe = recipe.clone();
    recipe.quantization_bit = Some(4);
    let cost = Text::new("frozen weights are rounded to 4 bits", "冻结的权重被舍入到 4 位");
    vec![Changed::new(recipe, ["quantization_bit: 4".to_owned()], cost)]
}

fn lora(recipe: &Recipe) -> Vec<Changed> {
    if !recipe.trains_weights() {
        return Vec::new();
    }
    let mut recipe = recipe.clone();
    recipe.finetuning_type = FinetuningType::Lora;
    let cost = Text::new("an adapter is trained in place of all weights", "只训练适配器，不训练全部权重");
    vec![Changed::new(recipe, ["finetuning_type: lora".to_owned()], cost)]
}

fn shorter_rows(recipe: &Recipe) -> Vec<Changed> {
    let shorter = halves(recipe.cutoff_len).filter(|length| *length >= SHORTEST).map(|length| {
        let mut recipe = recipe.clone();
        recipe.cutoff_len = length;
        let cost = Text::new("longer rows are cut off", "更长的数据会被截断");
        Changed::new(recipe, [format!("cutoff_len: {length}")], cost)
    });
    shorter.collect()
}

fn fewer_checkpoints(recipe: &Recipe) -> Vec<Changed> {
    let fewer = halves(recipe.save_total_limit).map(|limit| {
        let mut recipe = recipe.clone();
        recipe.save_total_limit = limit;
        let cost = Text::new("fewer checkpoints to go back to", "可回退的检查点更少");
        Changed::new(recipe, [format!("save_total_limit: {limit}")], cost)
    });
    fewer.collect()
}

/// Half of `number`, half of that, … 1.
fn halves(number: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(number / 2), |half| Some(half / 2)).take_while(|half| *half > 0)
}

fn refused(resource: &Resource, needs: u64, has: u64, remedies: &[Tried]) -> Problem {
    let list = |enough: &str| {
        let one = |(remedy, needs): &Tried| {
            let mark = if remedy.fits { enough } else { "" };
            format!("{} → {}{mark}", remedy.change.join(" + "), gib(*needs))
        };
        remedies.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    let (en, zh) = match remedies.iter().any(|(remedy, _)| remedy.fits) {
        true => (format!("change the recipe: {}", list(" (fits)")), format!("修改配方：{}", list("（可行）"))),
        false if remedies.is_empty() => ("choose a smaller model".to_owned(), "请选择更小的模型".to_owned()),
        false => (
            format!("no change of the recipe is enough ({}): choose a smaller model", list("")),
            format!("仅修改配方不够（{}）：请选择更小的模型", list("")),
        ),
    };
    Problem::error(resource.code, resource.message.0, resource.message.1)
        .found(gib(needs))
        .expected(format!("≤ {}", gib(has)))
        .fix(
            format!("{en}; or start it all the same with --ignore-estimate"),
            format!("{zh}；或用 --ignore-estimate 强行启动"),
        )
}

/// `3.1 GiB`.
fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1u32 << 30))
}
