//! Work shared by threads, one item at a time, so that long and short items even out.
use crate::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// More threads than this help nobody.
const MOST: usize = 256;

/// `work(item)` for every item in order, over `threads` threads (0: one for each core). The result does not depend on
/// the number of threads; of several errors the one of the earliest item is returned, with the item's number.
pub fn parallel<I: Sync, O: Send>(
    items: &[I],
    threads: usize,
    work: impl Fn(&I) -> Result<O> + Sync,
) -> Result<Vec<O>> {
    let cores = || thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if threads == 0 { cores() } else { threads.min(MOST) }.min(items.len());
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { break done };
            done.push((at, work(item)));
        }
    };
    let mut done = thread::scope(|scope| {
        // Where the system gives no more threads, those that are there do the work.
        let others: Vec<_> = (1..threads).map_while(|_| thread::Builder::new().spawn_scoped(scope, run).ok()).collect();
        let mut done = run();
        for other in others {
            match other.join() {
                Ok(part) => done.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter()
        .map(|(item, result)| result.map_err(|error| Error::Item { item, error: Box::new(error) }))
        .collect()
}
