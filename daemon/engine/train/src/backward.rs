//! Loss and gradients of one batch, block by block.
//!
//! Each block is a gradient graph of its own. The backward goes from the top down: a block's input is a leaf, the
//! gradient that arrives from above is multiplied onto its output, and the gradients of its parameters leave at once, so
//! that no two blocks' gradients exist together unless whoever takes them keeps them. With checkpointing (Chen et al.
//! 2016, arXiv 1604.06174) only the inputs of the blocks are kept and each graph is made anew when its turn comes;
//! without it all graphs wait. The numbers are the same to the last bit.

use burn::tensor::Tensor;
use justtrain_model::adapters::TableLora;
use justtrain_model::parameters::{Parameter, Parameters, Trained, constant};
use justtrain_model::{Block, Decoder, Input, Mode, Pass, Taken};

use crate::gradients::multiply;
use crate::objectives::{Loss, Objective, RewardSums};
use crate::regularizers::{Regularizers, noisy};
use crate::step::MicroBatch;

/// How gradients are made.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    pub objective: &'a dyn Objective,
    pub trained: Trained<'a>,
    /// Makes each block's graph twice instead of keeping all.
    pub checkpointing: bool,
    pub mode: Mode,
    pub regularizers: &'a Regularizers,
    /// What the sum of the losses is divided by before its gradient is taken.
    pub divisor: f32,
    /// What it is multiplied by meanwhile: a power of 2, by which the gradients are divided before anybody sees them.
    pub loss_scale: f32,
}

/// Takes the gradient of a parameter, which it may change: nothing reads that parameter again in this pass.
pub type Sink<'a> = &'a mut dyn FnMut(Parameter<'_>, Vec<f32>);

impl Backward<'_> {
    /// Returns the sum of the batch's losses, and of its rewards. When the former is no finite number, no gradients are
    /// made.
    pub fn run(&self, decoder: &mut Decoder, batch: &MicroBatch, sink: Sink<'_>) -> (f64, RewardSums) {
        let input = &batch.input;
        let pass = decoder.pass(input, self.mode);
        let tables_trained = !decoder.embeddings().trained_sizes(self.trained).is_empty();
        let lowest = self.lowest_trained(decoder, &pass, tables_trained);
        let embedded = self.embedded(decoder, input);
        let mut x = decoder.embeddings().norm().map_or(embedded.clone(), |norm| norm.forward(embedded));
        let mut kept = Vec::new();
        for (index, block) in decoder.blocks().iter().enumerate() {
            if index < lowest {
                x = block.forward(x, &pass);
            } else if self.checkpointing {
                let output = block.forward(x.clone(), &pass);
                kept.push(Kept::Input(std::mem::replace(&mut x, output)));
            } else {
                let graph = BlockGraph::new(block, x, &pass, self.trained, index > lowest || tables_trained);
                x = graph.output.clone().inner();
                kept.push(Kept::Graph(graph));
            }
        }

        let all_below_frozen = kept.is_empty() && !tables_trained;
        let (loss, head_gradients, upstream) = self.head(decoder, x, batch, !all_below_frozen);
        if !loss.0.is_finite() {
            return loss;
        }
        // A table that is the output layer as well has its gradient whole only at the end.
        let (tables, rest): (Vec<_>, Vec<_>) =
            head_gradients.into_iter().partition(|(name, _)| name == decoder.embeddings_name());
        self.give(decoder, rest, sink);
        let Some(upstream) = upstream else { return loss };
        let (mut below, mut of_pass) = (Some(upstream), Gradients::new());
        for index in (lowest..decoder.blocks().len()).rev() {
            let graph = match kept.pop().expect("one for each block") {
                Kept::Graph(graph) => graph,
                Kept::Input(x) => {
                    let track_input = index > lowest || tables_trained;
                    BlockGraph::new(&decoder.blocks()[index], x, &pass, self.trained, track_input)
                }
            };
            let upstream = below.take().expect("every block but the lowest tracks its input");
            let gradients = graph.backward(self.trained, upstream);
            self.give(&mut decoder.blocks_mut()[index], gradients.of_block, sink);
            add_all(&mut of_pass, gradients.of_pass);
            below = gradients.of_input;
        }
        // What blocks share has its gradient whole only now.
        self.give(decoder, of_pass, sink);
        let Some(upstream) = below else { return loss };
        let table = tables.into_iter().next().map(|(_, gradient)| gradient);
        let gradients = self.embedding_gradients(decoder, input, upstream, table);
        self.give(decoder, gradients, sink);
        loss
    }

    /// Hands each gradient over beside its parameter.
    fn give(&self, part: &mut impl Parameters, gradients: Gradients, sink: Sink<'_>) {
        let mut gradients = gradients.into_iter().peekable();
        for parameter in part.parameters_mut() {
            if let Some((_, mut gradient)) = gradients.next_if(|(name, _)| *name == parameter.name) {
                if self.loss_scale != 1.0 {
                    multiply(&mut gradient, 1.0 / self.loss_scale);
                }
                sink(parameter, gradient);
            }
        }
        assert!(gradients.next().is_none(), "gradients come in the order of the network");
    }

    /// What the tables say of the input, with the noise on it, before a norm.
    fn embedded(&self, decoder: &Decoder, input: &Input) -> Tensor<2> {
        let x = decoder.embeddings().sum(input, &decoder.device(), self.mode.adapter);
        match (self.regularizers.noise, self.mode.dropout_seed) {
            (Some(alpha), Some(seed)) => noisy(x, input, alpha, decoder.config().embedding_scale, seed),
            _ => x,
        }
    }

    /// The first block that a gradient must reach.
    fn lowest_trained(&self, decoder: &Decoder, pass: &Pass, tables_trained: bool) -> usize {
        let blocks = decoder.blocks();
        let shared = pass.trained_sizes(self.trained);
        let shares_trained =
            |block: &Block| block.shared(pass).is_some_and(|name| shared.iter().any(|(n, _)| *n == name));
        let has_trained = |block: &Block| !block.trained_sizes(self.trained).is_empty() || shares_trained(block);
        if tables_trained { 0 } else { blocks.iter().position(has_trained).unwrap_or(blocks.len()) }
    }

    /// The loss, the gradients of the last norm and the output layer, and where it is wanted that of the last block's
    /// output.
    fn head(
        &self,
        decoder: &Decoder,
        x: Tensor<2>,
        batch: &MicroBatch,
        track_input: bool,
    ) -> ((f64, RewardSums), Gradients, Option<Tensor<2>>) {
        let mut head = decoder.head(self.mode).tracked(self.trained, &decoder.device());
        let x = constant(x);
        let x = if track_input { x.require_grad() } else { x };
        let Loss { sum, graph, rewards } = self.objective.loss(&head, x.clone(), batch);
        let mut gradients = (graph / self.divisor * self.loss_scale).backward();
        let upstream = track_input.then(|| x.grad_remove(&mut gradients).expect("the loss depends on the last block"));
        ((sum, rewards), head.take_gradients(self.trained, &mut gradients), upstream)
    }

    /// The gradients of the tables below the first block and of their norm, as far as they are trained. `table` is what the
    /// output layer gave that of the tokens.
    fn embedding_gradients(
        &self,
        decoder: &Decoder,
        input: &Input,
        upstream: Tensor<2>,
        mut table: Option<Vec<f32>>,
    ) -> Gradients {
        let embeddings = decoder.embeddings();
        if let (Some(image), Some(patches)) = (embeddings.image(), &input.patches) {
            let mut image = image.tracked(self.trained, &decoder.device());
            let mut gradients = (image.forward(constant(patches.clone())) * constant(upstream)).sum().backward();
            return image.take_gradients(self.trained, &mut gradients);
        }
        let (upstream, of_norm) = match embeddings.norm() {
            None => (upstream, Gradients::new()),
            Some(norm) => {
                let mut norm = norm.tracked(self.trained, &decoder.device());
                let x = constant(self.embedded(decoder, input)).require_grad();
                let mut gradients = (norm.forward(x.clone()) * constant(upstream)).sum().backward();
                let below = x.grad_remove(&mut gradients).expect("a norm depends on its input");
                (below, norm.take_gradients(self.trained, &mut gradients))
            }
        };
        let numbers: Vec<f32> = upstream.clone().into_data().try_into_vec().expect("gradients are f32");
        let of_table = |Taken { name, shape: [count, width], rows, scale, lora }: Taken<'_>| {
            let of_pair = lora.map(|lora| self.pair_gradients(lora, &rows, upstream.clone() * scale));
            let of_weight = self.trained.includes(name).then(|| {
                let of_output = table.take_if(|_| name == decoder.embeddings_name());
                let mut gradient = of_output.unwrap_or_else(|| vec![0.0; count * width]);
                add_rows(&mut gradient, &rows, &numbers, scale);
                (name.to_owned(), gradient)
            });
            of_weight.into_iter().chain(of_pair.into_iter().flatten())
        };
        embeddings.taken(input).into_iter().flat_map(of_table).chain(of_norm).collect()
    }

    /// Those of a table's adapter, as far as it is trained; `upstream` is the gradient of what it adds to each row.
    fn pair_gradients(&self, lora: &TableLora, rows: &[u32], upstream: Tensor<2>) -> Gradients {
        if lora.trained_sizes(self.trained).is_empty() {
            return Gradients::new();
        }
        let device = upstream.device();
        let mut lora = lora.tracked(self.trained, &device);
        let mut gradients = (lora.forward(rows, &device) * constant(upstream)).sum().backward();
        lora.take_gradients(self.trained, &mut gradients)
    }
}

type Gradients = Vec<(String, Vec<f32>)>;

/// What the forward keeps of a block for the backward.
// One for each block, beside megabytes of numbers; a run has all of one kind.
#[allow(clippy::large_enum_variant)]
enum Kept {
    Input(Tensor<2>),
    Graph(BlockGraph),
}

/// One block's forward with everything that its backward needs.
struct BlockGraph {
    /// A leaf, where a gradient is wanted below.
    input: Option<Tensor<2>>,
    block: Block,
    pass: Pass,
    output: Tensor<2>,
}

/// Of one block.
struct BlockGradients {
    of_block: Gradients,
    /// Of what it shares with others.
    of_pass: Gradients,
    of_input: Option<Tensor<2>>,
}

impl BlockGraph {
    fn new(block: &Block, x: Tensor<2>, pass: &Pass, trained: Trained<'_>, track_input: bool) -> Self {
        let (block, pass) = (block.tracked(trained, &x.device()), pass.tracked(trained, &x.device()));
        let x = constant(x);
        let x = if track_input { x.require_grad() } else { x };
        let output = block.forward(x.clone(), &pass);
        Self { input: track_input.then_some(x), block, pass, output }
    }

    fn backward(self, trained: Trained<'_>, upstream: Tensor<2>) -> BlockGradients {
        let Self { input, mut block, mut pass, output } = self;
        let mut gradients = (output * constant(upstream)).sum().backward();
        BlockGradients {
            of_input: input.map(|input| input.grad_remove(&mut gradients).expect("a block depends on its input")),
            of_block: block.take_gradients(trained, &mut gradients),
            of_pass: pass.take_gradients(trained, &mut gradients),
        }
    }
}

/// Adds gradients of the same parameters up.
fn add_all(sums: &mut Gradients, more: Gradients) {
    if sums.is_empty() {
        *sums = more;
        return;
    }
    for ((_, sum), (_, more)) in sums.iter_mut().zip(more) {
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
}

/// Adds `scale` times row `i` of `values` to row `rows[i]` of the table.
fn add_rows(table: &mut [f32], rows: &[u32], values: &[f32], scale: f32) {
    let width = values.len() / rows.len();
    for (&row, values) in rows.iter().zip(values.chunks_exact(width)) {
        let sums = &mut table[row as usize * width..][..width];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += scale * value);
    }
}
