//! Host memory of CPU tensors: contiguous `f32` slices in, freshly allocated tensors out.

use burn::tensor::TensorData;
use burn_flex::FlexTensor;

/// The tensor with its elements in row-major order and nothing else in its buffer's view.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// Elements of a tensor that went through [`contiguous`].
pub(crate) fn elements(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous f32 tensor")
}

/// `[rows, cols]` of a two-dimensional tensor.
pub(crate) fn shape2(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

pub(crate) fn tensor<const D: usize>(elements: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(elements, shape))
}

/// Memory that the caller writes completely before reading: clearing it first would cost as much as a whole
/// element-wise op.
#[allow(clippy::uninit_vec)]
pub(crate) fn uninit<T: bytemuck::Pod>(len: usize) -> Vec<T> {
    let mut elements = Vec::with_capacity(len);
    // SAFETY: the capacity is `len`, every bit pattern is a valid number, and callers overwrite each element.
    unsafe { elements.set_len(len) };
    elements
}

/// A pointer that parallel tasks write through, each to its own places.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: whoever dereferences it guarantees that no two tasks touch the same element.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(elements: &mut [f32]) -> Self {
        Self(elements.as_mut_ptr())
    }

    /// # Safety
    /// `offset` lies inside the slice this was made from.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: passed on to the caller.
        unsafe { self.0.add(offset) }
    }

    /// # Safety
    /// The range lies inside the slice this was made from, and no other task touches it meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), len) }
    }
}
