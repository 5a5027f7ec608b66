//! Stands in for the crate `cubecl-llvm` when the CUDA worker is built.
//!
//! `cubecl-cuda` compiles kernels in one of two ways: through LLVM, or as CUDA C++ through NVIDIA's NVRTC. It links both,
//! and the original of this crate downloads a whole LLVM while it builds. The worker takes NVRTC (feature
//! `cubecl/cuda-cpp`), so that of LLVM only the names are needed, which are these. Whoever takes the other way without the
//! original gets [`MISSING`] instead of a wrong result. See `docs/adr/cuda-build.md`.

/// What every function here that cannot do its work says.
const MISSING: &str = "this build has no LLVM: CUDA kernels are compiled by NVRTC (feature `cubecl/cuda-cpp`)";

pub use shared::{NvptxModule, PlironArtifact, PlironCompiler, PlironOptions};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    #[default]
    Cpu,
    Nvptx,
}

pub mod nvptx {
    pub mod ptx_version {
        use std::fmt;

        /// There is none: NVRTC writes the version of its own toolkit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

pub mod shared {
    use std::ffi::c_char;

    use cubecl_core::ir::nvidia::SmArch;
    use cubecl_core::prelude::KernelDefinition;
    use cubecl_server::compiler::CompilationError;
    use cubecl_server::kernel::BufferIOAttr;

    use crate::nvptx::ptx_version::PtxVersion;
    use crate::{LlvmTarget, MISSING};

    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum GpuTarget {
            Nvptx,
        }

        /// Called when a device is opened, where LLVM is the compiler.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {
            panic!("{}", crate::MISSING);
        }
    }

    #[derive(Debug, Clone, Default)]
    pub struct PlironCompiler {
        pub target: LlvmTarget,
    }

    #[derive(Debug, Clone, Default)]
    pub struct PlironOptions {
        pub arch: Option<()>,
        pub sm_arch: Option<SmArch>,
        pub ptx_version: Option<PtxVersion>,
        pub grid_constants: bool,
    }

    #[derive(Debug, Clone)]
    pub struct NvptxModule {
        pub ptx: Vec<c_char>,
        pub entrypoint: String,
        pub ir: String,
        pub shared_memory_size: usize,
        pub io: Vec<BufferIOAttr>,
    }

    #[derive(Debug, Clone)]
    #[non_exhaustive]
    pub enum PlironArtifact {
        NvptxCode(NvptxModule),
    }

    impl PlironCompiler {
        pub fn compile(
            &mut self,
            _: KernelDefinition,
            _: &PlironOptions,
        ) -> Result<PlironArtifact, CompilationError> {
            panic!("{MISSING}");
        }

        pub fn lang_tag(&self) -> &'static str {
            "llvm"
        }
    }
}
