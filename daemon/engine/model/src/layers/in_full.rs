//! Tensors of the base model that are trained in full beside an adapter.

/// Which ones of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InFull {
    pub weight: bool,
    pub bias: bool,
}

/// Between the names of a module and of its tensor, where the tensor is trained so: PEFT's mark.
const MARK: &str = ".modules_to_save";
/// The same in the bias of a layer that has an adapter.
const BESIDE_PAIR: &str = ".base_layer.bias";

impl InFull {
    pub(crate) fn weight_name(self, module: &str) -> String {
        format!("{module}{}.weight", if self.weight { MARK } else { "" })
    }

    pub(crate) fn bias_name(self, module: &str, adapted: bool) -> String {
        match (self.bias, adapted) {
            (false, _) => format!("{module}.bias"),
            (true, false) => format!("{module}{MARK}.bias"),
            (true, true) => format!("{module}{BESIDE_PAIR}"),
        }
    }

    /// Whether a parameter's name is that of a tensor that is trained so.
    pub(crate) fn marks(parameter: &str) -> bool {
        parameter.contains(MARK) || parameter.ends_with(BESIDE_PAIR)
    }

    /// The tensor's name in PEFT's files.
    pub(crate) fn peft_name(parameter: &str) -> String {
        parameter.replace(MARK, "")
    }

    /// The tensor's name in the base model.
    pub(crate) fn base_name(parameter: &str) -> String {
        Self::peft_name(parameter).replace(BESIDE_PAIR, ".bias")
    }
}
