//! What a card does before it is quick, said while it is done: for each kind of operation it times the kernels that can do it, once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gpas_train::backend::{BackendChoice, BackendError, Products, Selected};
use gpas_train::kernels::{KernelEvent, listen};
use ratatui::crossterm::terminal::is_raw_mode_enabled;

/// Kinds of operation that this process has timed kernels for. It belongs to the process as its logger does, which counts here.
static CHOSEN: AtomicU64 = AtomicU64::new(0);

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(5);

/// Selects a backend, and says from now on what its card is busy with before it is quick.
///
/// # Errors
/// As [`BackendChoice::select`].
pub fn select(choice: BackendChoice) -> Result<Selected, BackendError> {
    let last = Mutex::new(None);
    // A process that has a logger already, as it has when this was called before, keeps it.
    let _ = listen(move |event| match event {
        KernelEvent::Tuning(_) => {
            let chosen = CHOSEN.fetch_add(1, Ordering::Relaxed) + 1;
            // The dashboard, which has the terminal in raw mode, says so itself.
            if !is_raw_mode_enabled().unwrap_or(false) && is_due(&last, Instant::now()) {
                complain!("{}", line(chosen));
            }
        }
        KernelEvent::Told(message) => complain!("{message}"),
        KernelEvent::Launched(_) | KernelEvent::Took(..) => (),
    });
    let selected = choice.select()?;
    // The library is looked for here, before other threads compute, and its absence is said once.
    if let Some(Products::Kernels(words)) = selected.products() {
        complain!("matrix products by {words}");
    }
    Ok(selected)
}

/// How many kinds of operation kernels were chosen for so far. CubeCL does not tell how many there will be.
pub fn chosen() -> u64 {
    CHOSEN.load(Ordering::Relaxed)
}

/// In words.
pub fn line(chosen: u64) -> String {
    format!("choosing kernels for this card, once: {chosen} so far")
}

/// Whether it is time for another line, which is then the last.
fn is_due(last: &Mutex<Option<Instant>>, now: Instant) -> bool {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let is_due = last.is_none_or(|last| now >= last + PAUSE);
    if is_due {
        *last = Some(now);
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_at_once_and_then_seldom() {
        let (last, now) = (Mutex::new(None), Instant::now());
        let second = Duration::from_secs(1);
        let due = [0, 1, 4, 5, 6, 11].map(|after| is_due(&last, now + after * second));
        assert_eq!(due, [true, false, false, true, false, true]);
        assert_eq!(line(12), "choosing kernels for this card, once: 12 so far");
    }
}
