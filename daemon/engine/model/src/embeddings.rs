//! What goes into the first block: rows of tables, added up, and with some families a norm of the sum; or images.

use burn::tensor::{Device, Tensor};
use justtrain_kernels::{Weight, embedding};
use justtrain_worker_api::Problem;

use crate::Input;
use crate::adapters::TableLora;
use crate::config::{DecoderConfig, Positions, TOKEN_TYPES};
use crate::image::ImageEmbeddings;
use crate::layers::Norm;
use crate::parameters::{Parameter, Parameters};
use crate::weights::Loader;

#[derive(Debug, Clone)]
pub struct Embeddings {
    /// That of the tokens first; none where images are read.
    pub(crate) tables: Vec<Table>,
    image: Option<ImageEmbeddings>,
    pub(crate) norm: Option<Norm>,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    /// The module that the table is the weight of.
    pub(crate) module: &'static str,
    pub(crate) weight: Weight,
    rows: Rows,
    /// What a row is multiplied by.
    scale: f32,
    /// On the table of the tokens alone.
    pub(crate) lora: Option<TableLora>,
}

/// What of a token says which row of a table it takes.
#[derive(Debug, Clone, Copy)]
enum Rows {
    Id,
    /// `offset` is the row of a sequence's first token.
    Position {
        offset: u32,
    },
    Type,
}

/// What a batch takes of one table.
#[derive(Debug)]
pub struct Taken<'a> {
    /// The table's name among the parameters.
    pub name: &'a str,
    /// `[rows, features]` of the table.
    pub shape: [usize; 2],
    /// One for each token.
    pub rows: Vec<u32>,
    pub scale: f32,
    pub lora: Option<&'a TableLora>,
}

impl Table {
    fn rows(&self, input: &Input) -> Vec<u32> {
        match self.rows {
            Rows::Id => input.ids.clone(),
            Rows::Position { offset } => input.positions.iter().map(|position| position + offset).collect(),
            Rows::Type if input.types.is_empty() => vec![0; input.ids.len()],
            Rows::Type => input.types.clone(),
        }
    }
}

impl Embeddings {
    pub(crate) fn load(loader: &Loader<'_>, config: &DecoderConfig) -> Result<Self, Problem> {
        let (names, width) = (config.names, config.hidden_size);
        let table = |module: &'static str, rows, weight: &dyn Fn(&str) -> Result<Weight, Problem>| {
            let name = format!("{module}.weight");
            Ok::<_, Problem>(Table { weight: weight(&name)?, name, module, rows, scale: 1.0, lora: None })
        };
        if let Some(patches) = config.patches {
            let image = Some(ImageEmbeddings::load(loader, config, patches)?);
            return Ok(Self { tables: Vec::new(), image, norm: None });
        }
        let of_tokens = table(names.embeddings, Rows::Id, &|name| loader.table(name, [config.vocab_size, width]))?;
        let mut tables = vec![Table { scale: config.embedding_scale, ..of_tokens }];
        if let (&Positions::Learned { rows, offset }, Some(module)) = (&config.positions, names.positions) {
            let by_position = Rows::Position { offset: offset as u32 };
            tables.push(table(module, by_position, &|name| loader.in_full_precision(name, [rows, width]))?);
        }
        if let Some(module) = names.token_types {
            tables.push(table(module, Rows::Type, &|name| loader.in_full_precision(name, [TOKEN_TYPES, width]))?);
        }
        let norm = names.embedding_norm.map(|name| loader.norm(name.to_owned(), width, config)).transpose()?;
        Ok(Self { tables, image: None, norm })
    }

    /// None where images are read.
    pub(crate) fn tokens(&self) -> Option<&Table> {
        self.tables.first()
    }

    pub(crate) fn tokens_mut(&mut self) -> Option<&mut Table> {
        self.tables.first_mut()
    }

    /// `[tokens, hidden]`, before the norm; with or without the adapter.
    pub fn sum(&self, input: &Input, device: &Device, adapter: bool) -> Tensor<2> {
        if let Some(image) = &self.image {
            return image.forward(input.patches.clone().expect("an image model is given images"));
        }
        let rows = |table: &Table| {
            let places = table.rows(input);
            let rows = embedding(&table.weight, &places, device);
            let rows = match table.lora.as_ref().filter(|_| adapter) {
                None => rows,
                Some(lora) => rows + lora.forward(&places, device),
            };
            if table.scale == 1.0 { rows } else { rows * table.scale }
        };
        let sum = self.tables.iter().map(rows).reduce(|sum, rows| sum + rows);
        sum.expect("there is a table of tokens")
    }

    /// What [`Self::sum`] takes, table by table, in the order of [`Parameters::parameters_mut`].
    pub fn taken(&self, input: &Input) -> Vec<Taken<'_>> {
        let tables = self.tables.iter();
        let taken = tables.map(|table| Taken {
            name: &table.name,
            shape: table.weight.dims(),
            rows: table.rows(input),
            scale: table.scale,
            lora: table.lora.as_ref(),
        });
        taken.collect()
    }

    /// What makes tokens of images, where images are read.
    pub fn image(&self) -> Option<&ImageEmbeddings> {
        self.image.as_ref()
    }

    /// What comes after the sum, where there is something.
    pub fn norm(&self) -> Option<EmbeddingNorm> {
        self.norm.clone().map(EmbeddingNorm)
    }
}

impl Parameters for Embeddings {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let Self { tables, image, norm } = self;
        let tables = tables.iter_mut().flat_map(|Table { name, weight, lora, .. }| {
            let lora = lora.iter_mut().flat_map(TableLora::parameters_mut);
            std::iter::once(Parameter::weight(name.clone(), weight)).chain(lora)
        });
        let image = image.iter_mut().flat_map(ImageEmbeddings::parameters_mut);
        tables.chain(image).chain(norm.iter_mut().flat_map(Norm::parameters_mut)).collect()
    }
}

/// The norm of the sum of all tables.
#[derive(Debug, Clone)]
pub struct EmbeddingNorm(Norm);

impl EmbeddingNorm {
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.0.forward(x)
    }
}

impl Parameters for EmbeddingNorm {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        self.0.parameters_mut().collect()
    }
}
