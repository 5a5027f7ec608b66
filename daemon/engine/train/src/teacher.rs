//! The model that another one learns from: opened beside it, and refused where the two read text differently.

use burn::tensor::Device;
use justtrain_data::{Encoder, Sample, Tokenizer};
use justtrain_model::{Decoder, DecoderConfig, Seq2Seq, families};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{Failure, FailureReason, ModelFiles, Problem, ProblemCode};

use crate::objectives::{self, Distillation, Divergence, Objective};
use crate::prepare::check_lengths;
use crate::recipe::Recipe;

/// A recipe's teacher, whose weights are not read yet.
#[derive(Debug)]
pub(crate) struct Teacher {
    checkpoint: Checkpoint,
    pub(crate) config: DecoderConfig,
}

impl Teacher {
    /// None where the recipe names none. `encoder` is what the data is read by.
    pub(crate) fn find(recipe: &Recipe, model: &ModelFiles, encoder: &Encoder) -> Result<Option<Self>, Failure> {
        let Some(name) = &recipe.teacher else { return Ok(None) };
        let invalid = |problem: Problem| problem.because(FailureReason::ModelInvalid);
        let path = model.teachers.get(name).ok_or_else(|| invalid(not_there(name)))?;
        let checkpoint = Checkpoint::open(path).map_err(invalid)?;
        let config = families::decoder_config(&checkpoint).map_err(invalid)?;
        if config.seq2seq.map(marks) != encoder.seq2seq.map(|stacks| [stacks.start, stacks.end]) {
            return Err(other_stacks(name, config.seq2seq.is_some()).because(FailureReason::RecipeInvalid));
        }
        let tokenizer = Tokenizer::open(&checkpoint).map_err(invalid)?;
        let differing = encoder.tokenizer.first_difference(&tokenizer).map(|[own, of_teacher]| {
            let found = of_teacher.map_or("no such token".to_owned(), |token| format!("{token:?}"));
            (found, format!("{:?}", own.unwrap_or_default()))
        });
        if let Some((found, expected)) = differing {
            return Err(other_vocabulary(name, &found, &expected).because(FailureReason::RecipeInvalid));
        }
        Ok(Some(Self { checkpoint, config }))
    }

    /// Of its tensors in its files.
    pub(crate) fn bytes(&self) -> u64 {
        self.checkpoint.bytes()
    }

    /// What the recipe minimises, in which this teacher has a part. Its weights are held as frozen ones of the model are.
    pub(crate) fn objective(
        self,
        recipe: &Recipe,
        vocabulary: usize,
        samples: [&[Sample]; 2],
        device: &Device,
    ) -> Result<Box<dyn Objective>, Failure> {
        for samples in samples {
            check_lengths(&self.config, samples)?;
        }
        let teacher = Decoder::load(&self.checkpoint, device, recipe.weight_formats())
            .map_err(|problem| problem.because(FailureReason::ModelInvalid))?;
        let divergence = Divergence {
            direction: recipe.kd_direction,
            temperature: recipe.kd_temperature,
            vocabulary: vocabulary.min(self.config.vocab_size),
        };
        let of_data = objectives::loss_of_tokens(recipe);
        Ok(Box::new(Distillation { teacher, divergence, alpha: recipe.kd_alpha, of_data }))
    }
}

fn not_there(name: &str) -> Problem {
    Problem::error(ProblemCode::FileNotFound, "the teacher is not on this machine", "本机没有这个教师模型")
        .key("teacher")
        .found(name)
        .fix(format!("pull it with `justtrain models pull {name}`"), format!("用 `justtrain models pull {name}` 下载"))
}

fn marks(stacks: Seq2Seq) -> [u32; 2] {
    [stacks.start, stacks.end]
}

/// Of a teacher that reads rows otherwise than the model.
fn other_stacks(name: &str, has_encoder: bool) -> Problem {
    let (found, expected) = ("an encoder and a decoder", "a decoder alone");
    let (found, expected) = if has_encoder { (found, expected) } else { (expected, found) };
    Problem::error(
        ProblemCode::InvalidValue,
        format!("the teacher {name} does not read rows as the model does"),
        format!("教师模型 {name} 读取数据的方式与被训练的模型不同"),
    )
    .key("teacher")
    .found(found)
    .expected(format!("{expected}, with the same marks at both ends of a text"))
    .fix("name a larger model of the same family", "请换同一系列的较大模型")
}

fn other_vocabulary(name: &str, found: &str, expected: &str) -> Problem {
    Problem::error(
        ProblemCode::InvalidValue,
        format!("the teacher {name} has other tokens than the model, so their predictions cannot be compared"),
        format!("教师模型 {name} 的词表与被训练的模型不同，两者的预测无法比较"),
    )
    .key("teacher")
    .found(found)
    .expected(expected)
    .fix(
        "name a larger model of the same family; or let the teacher write the answers, and train on those",
        "请换同一系列的较大模型；或先让教师写出回答，再用这些回答训练",
    )
}
