//! The terminal under the dashboard, whose raw mode takes away Ctrl-C and has to be undone however the program leaves.

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io::{IsTerminal, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::{Duration, Instant};

    use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

    /// How a terminal was before the dashboard.
    #[derive(Debug)]
    pub struct Terminal {
        file: OwnedFd,
        before: Termios,
    }

    impl Terminal {
        /// The controlling terminal as it is now; none without one.
        pub fn remember() -> Option<Self> {
            let input = std::io::stdin();
            let file = if input.is_terminal() {
                input.as_fd().try_clone_to_owned().ok()?
            } else {
                File::open("/dev/tty").ok()?.into()
            };
            let before = tcgetattr(&file).ok()?;
            Some(Self { file, before })
        }

        /// Lets Ctrl-C be a signal again once the dashboard, on its own thread, has entered raw mode.
        pub fn allow_interrupt(&self) {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(2) {
                let Ok(mut now) = tcgetattr(&self.file) else { return };
                if now.local_modes.contains(LocalModes::ICANON) {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                now.local_modes.insert(LocalModes::ISIG);
                // Ctrl-Z would leave a stopped program's raw terminal behind.
                now.special_codes[SpecialCodeIndex::VSUSP] = 0;
                let _ = tcsetattr(&self.file, OptionalActions::Now, &now);
                return;
            }
        }

        /// Back to how it was, out of the dashboard's screen, with a cursor. Where it is so already, nothing is seen of it.
        pub fn restore(&self) {
            let _ = tcsetattr(&self.file, OptionalActions::Now, &self.before);
            let _ = std::io::stdout().write_all(b"\x1b[?1049l\x1b[?25h");
            let _ = std::io::stdout().flush();
        }
    }
}

#[cfg(unix)]
pub use unix::Terminal;

/// How a terminal was before the dashboard.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Terminal;

#[cfg(not(unix))]
impl Terminal {
    /// Nothing is known of it here.
    pub fn remember() -> Option<Self> {
        None
    }

    /// Does nothing here.
    pub fn allow_interrupt(&self) {}

    /// Does nothing here.
    pub fn restore(&self) {}
}
