//! The tokens of images: patches through one linear layer, a token before them that stands for the image, and a table of
//! positions (ViT: Dosovitskiy et al. 2020, arXiv 2010.11929).

use burn::tensor::{Tensor, TensorData};
use justtrain_kernels::Weight;
use justtrain_worker_api::Problem;

use crate::config::{DecoderConfig, Patches};
use crate::parameters::{Parameter, Parameters};
use crate::weights::Loader;

#[derive(Debug, Clone)]
pub struct ImageEmbeddings {
    /// What the names of its tensors begin with.
    module: &'static str,
    patches: Patches,
    /// `[hidden, numbers of a patch]`; in files a convolution's.
    projection: Weight,
    bias: Tensor<1>,
    /// `[1, hidden]`.
    first: Tensor<2>,
    /// `[tokens of an image, hidden]`.
    positions: Tensor<2>,
}

/// Names and shapes in the order of the network.
pub(crate) fn tensors(module: &str, patches: Patches, hidden: usize) -> [(String, Vec<usize>); 4] {
    let name = |part: &str| format!("{module}.{part}");
    [
        (name("patch_embeddings.projection.weight"), vec![hidden, patches.numbers()]),
        (name("patch_embeddings.projection.bias"), vec![hidden]),
        (name("cls_token"), vec![1, hidden]),
        (name("position_embeddings"), vec![patches.tokens(), hidden]),
    ]
}

/// The same as files have them.
fn stored(patches: Patches, hidden: usize) -> [Vec<usize>; 4] {
    let Patches { patch_size, channels, .. } = patches;
    [
        vec![hidden, channels, patch_size, patch_size],
        vec![hidden],
        vec![1, 1, hidden],
        vec![1, patches.tokens(), hidden],
    ]
}

impl ImageEmbeddings {
    pub(crate) fn load(loader: &Loader<'_>, config: &DecoderConfig, patches: Patches) -> Result<Self, Problem> {
        let (module, hidden) = (config.names.embeddings, config.hidden_size);
        let names = tensors(module, patches, hidden).map(|(name, _)| name);
        let [weight, _, first, positions] = stored(patches, hidden);
        let matrix = |name: &str, stored: &[usize], shape| loader.reshaped(name, stored, shape);
        Ok(Self {
            module,
            patches,
            projection: matrix(&names[0], &weight, [hidden, patches.numbers()])?.into(),
            bias: loader.vector(&names[1], hidden)?,
            first: matrix(&names[2], &first, [1, hidden])?,
            positions: matrix(&names[3], &positions, [patches.tokens(), hidden])?,
        })
    }

    /// `[images · tokens, hidden]` of `[images · patches, numbers of a patch]`.
    pub fn forward(&self, patches: Tensor<2>) -> Tensor<2> {
        let (count, hidden) = (self.patches.count(), self.first.dims()[1]);
        let images = patches.dims()[0] / count;
        let projected = justtrain_kernels::linear(patches, &self.projection, None) + self.bias.clone().unsqueeze();
        let first = self.first.clone().unsqueeze::<3>().expand([images, 1, hidden]);
        let tokens = Tensor::cat(vec![first, projected.reshape([images, count, hidden])], 1);
        (tokens + self.positions.clone().unsqueeze::<3>()).reshape([images * (count + 1), hidden])
    }
}

impl Parameters for ImageEmbeddings {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let Self { module, patches, projection, bias, first, positions } = self;
        let hidden = first.dims()[1];
        let [weight, bias_name, first_name, positions_name] = tensors(module, *patches, hidden).map(|(name, _)| name);
        let [of_weight, _, of_first, of_positions] = stored(*patches, hidden);
        vec![
            Parameter::weight(weight, projection).stored_as(of_weight),
            Parameter::vector(bias_name, bias),
            Parameter::matrix(first_name, first).stored_as(of_first),
            Parameter::matrix(positions_name, positions).stored_as(of_positions),
        ]
    }
}

/// Cuts images, each `[channels, size, size]`, into `[images · patches, numbers of a patch]`, in the order in which a
/// convolution's weight lies.
pub(crate) fn cut(images: &[Vec<f32>], patches: Patches) -> TensorData {
    let Patches { image_size, patch_size, channels } = patches;
    let along = image_size / patch_size;
    let mut numbers = Vec::with_capacity(images.len() * patches.count() * patches.numbers());
    for image in images {
        assert_eq!(image.len(), channels * image_size * image_size, "an image has the model's size");
        for (down, right) in (0..along * along).map(|patch| (patch / along, patch % along)) {
            for (channel, row) in (0..channels * patch_size).map(|line| (line / patch_size, line % patch_size)) {
                let start = (channel * image_size + down * patch_size + row) * image_size + right * patch_size;
                numbers.extend_from_slice(&image[start..start + patch_size]);
            }
        }
    }
    TensorData::new(numbers, [images.len() * patches.count(), patches.numbers()])
}
