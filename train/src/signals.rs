//! Signals that ask a run to stop: SIGINT, SIGTERM, and SIGHUP as SIGTERM.
//!
//! The first one is noted, and the training loop stops after its step; the second leaves the process at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// From the keyboard.
    Interrupt,
    /// From the system, or from a terminal that was closed.
    Terminate,
}

impl Stop {
    /// What a process returns that was stopped so: 128 and the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Stop::Interrupt => 130,
            Stop::Terminate => 143,
        }
    }
}

/// Whether a stop was asked for, by a signal or by the dashboard.
#[derive(Clone, Debug)]
pub struct StopRequest {
    /// The exit code of the stop, or 0.
    code: Arc<AtomicI32>,
    /// What is done before the process leaves at once.
    on_leave: fn(),
}

impl Default for StopRequest {
    /// One that no signal reaches.
    fn default() -> Self {
        Self {
            code: Arc::default(),
            on_leave: || (),
        }
    }
}

impl StopRequest {
    /// Listens to this process's signals from now on. `on_leave` runs before the process leaves on a second one, to put the terminal back.
    ///
    /// # Errors
    /// If the system lets no handler be set.
    pub fn listen(on_leave: fn()) -> io::Result<Self> {
        let request = Self {
            on_leave,
            ..Self::default()
        };
        #[cfg(unix)]
        {
            use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
            use signal_hook::iterator::Signals;

            let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
            let noted = request.clone();
            std::thread::Builder::new().name("signals".into()).spawn(move || {
                for signal in signals.forever() {
                    noted.arrive(if signal == SIGINT {
                        Stop::Interrupt
                    } else {
                        Stop::Terminate
                    });
                }
            })?;
        }
        Ok(request)
    }

    /// Asks for a stop the first time; the second time, leaves.
    pub fn arrive(&self, stop: Stop) {
        if self.requested().is_some() {
            self.leave(stop);
        }
        self.request(stop);
    }

    /// Leaves the process at once.
    pub fn leave(&self, stop: Stop) -> ! {
        (self.on_leave)();
        let code = stop.exit_code().into();
        // Other threads are at work; what they would find torn down is left to the system.
        #[cfg(unix)]
        signal_hook::low_level::exit(code);
        #[cfg(not(unix))]
        std::process::exit(code)
    }

    /// Asks for a stop. The first request counts.
    pub fn request(&self, stop: Stop) {
        let code = i32::from(stop.exit_code());
        let _ = self
            .code
            .compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The stop that was asked for.
    pub fn requested(&self) -> Option<Stop> {
        match self.code.load(Ordering::Relaxed) {
            0 => None,
            code if code == i32::from(Stop::Interrupt.exit_code()) => Some(Stop::Interrupt),
            _ => Some(Stop::Terminate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_counts() {
        let request = StopRequest::default();
        assert_eq!(request.requested(), None);
        request.request(Stop::Terminate);
        request.request(Stop::Interrupt);
        assert_eq!(request.requested(), Some(Stop::Terminate));
    }
}
