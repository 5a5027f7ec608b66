//! Memory for a training run: what is freed is kept for the next step, where tensors of the same sizes come again.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` in mimalloc's `mi_option_t`, which the bindings leave out.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Never gives freed pages back to the system: to get them again it has to clear them, at every step a tenth of its time.
pub(crate) fn keep_freed_pages() {
    // SAFETY: sets a number, before other threads exist.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}
