//! Where tensors live: on the processor, for which every op has kernels of its own, or on a GPU, where every op goes
//! through its `reference` until it has a kernel there.

use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor};

/// Whether this build can use NVIDIA GPUs.
pub const CUDA: bool = cfg!(feature = "cuda");

/// The NVIDIA GPUs that this build can use, by index. Asking for one that is not listed would end in a panic on another
/// thread at the first op.
pub fn cuda_devices() -> Vec<Device> {
    #[cfg(feature = "cuda")]
    {
        Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec()
    }
    #[cfg(not(feature = "cuda"))]
    {
        Vec::new()
    }
}

/// Name and compile target of a GPU, such as `NVIDIA H100 80GB HBM3` and `ptx_sm90`; None for the processor.
pub fn gpu_name(device: &Device) -> Option<(String, String)> {
    #[cfg(feature = "gpu")]
    {
        device.identity().map(|identity| (identity.name, identity.fingerprint))
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = device;
        None
    }
}

/// Runs one kernel. A GPU can be listed and still compile none, as where NVRTC or the CUDA headers are missing; what is
/// missing is then on standard error.
pub fn try_kernel(device: &Device) -> bool {
    let sum = || Tensor::<1>::ones([8], device).sum().into_data().try_to_vec::<f32>();
    matches!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(sum)), Ok(Ok(sum)) if sum == [8.0])
}

/// The choice between an op's own kernel and its `reference`.
pub(crate) fn on_cpu<const D: usize>(tensor: &Tensor<D>) -> bool {
    is_cpu(&tensor.device())
}

/// Whether tensors there are the processor's.
pub fn is_cpu(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Autodiff(inner) => matches!(**inner, DispatchDevice::Flex(_)),
        device => matches!(device, DispatchDevice::Flex(_)),
    }
}
