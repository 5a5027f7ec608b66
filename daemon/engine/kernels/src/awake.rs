//! Threads that stay awake between parallel loops.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// Spins between two looks for work: a microsecond or two.
const SPINS: usize = 32;

/// Does some work whose parallel loops come one soon after the other, as a step's thousands do. A thread that finds none for a
/// moment would fall asleep, and to wake it takes longer than many a loop. Until this ends, threads of the pool look for
/// work instead.
pub fn awake<R>(work: impl FnOnce() -> R) -> R {
    let Some(this) = rayon::current_thread_index() else { return work() };
    let ended = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(|_, context| {
            if context.index() == this {
                return;
            }
            while !ended.load(Ordering::Acquire) {
                if rayon::yield_now() == Some(Yield::Idle) {
                    (0..SPINS).for_each(|_| std::hint::spin_loop());
                }
            }
        });
        let _end = End(&ended);
        work()
    })
}

/// Ends it, even where work panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn threads_work_meanwhile_and_are_free_afterwards() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let sum = |to: u64| (0..to).into_par_iter().sum::<u64>();
        pool.install(|| {
            // One inside the other, as a step may run another's work.
            assert_eq!(awake(|| sum(1000) + awake(|| sum(10))), 499_500 + 45);
            let panics = std::panic::catch_unwind(|| awake(|| panic!("of the work")));
            assert!(panics.is_err());
            // All three are needed at once.
            let barrier = std::sync::Barrier::new(3);
            rayon::broadcast(|_| barrier.wait());
        });
        assert_eq!(awake(|| 7), 7);
    }
}
