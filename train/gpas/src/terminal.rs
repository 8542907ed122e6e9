//! Where this process may draw, and what the shell does with it meanwhile.
//!
//! What is drawn over needs a terminal whose cursor can be moved, and a process that the shell has put into its foreground: one in the
//! background that sets the terminal's mode or reads its keys is stopped by the system. Everywhere else there are lines.

mod kind;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A stream that may lead to a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// Why a stream takes lines, and nothing that is drawn over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum NoPicture {
    #[error("{0} is not a terminal")]
    NotATerminal(&'static str),
    #[error("the process is not in the foreground of its terminal")]
    Background,
    #[error("the terminal's kind is not known, TERM is not set")]
    NoKind,
    #[error("a terminal of the kind `{0}` has no cursor that can be moved")]
    NoCursor(String),
}

impl Stream {
    /// Whether something may be drawn on the stream.
    ///
    /// # Errors
    /// Why not.
    pub fn takes_pictures(self) -> Result<(), NoPicture> {
        let (name, is_terminal) = match self {
            Stream::Output => ("standard output", io::stdout().is_terminal()),
            Stream::Error => ("standard error", io::stderr().is_terminal()),
        };
        if !is_terminal {
            return Err(NoPicture::NotATerminal(name));
        }
        if !self.is_foreground() {
            return Err(NoPicture::Background);
        }
        // The consoles of Windows have cursors, and no TERM.
        if cfg!(unix) {
            has_cursor(env::var_os("TERM"))?;
        }
        Ok(())
    }

    /// Whether the stream is this process's terminal and the shell has put the process into its foreground.
    pub fn is_foreground(self) -> bool {
        #[cfg(unix)]
        {
            let descriptor = match self {
                Stream::Output => libc::STDOUT_FILENO,
                Stream::Error => libc::STDERR_FILENO,
            };
            // SAFETY: both calls take and return numbers. The first gives −1, which is no group, where there is no such terminal.
            unsafe { libc::tcgetpgrp(descriptor) == libc::getpgrp() }
        }
        #[cfg(not(unix))]
        {
            true
        }
    }
}

/// Whether a terminal of this kind, as TERM names it, has a cursor that can be moved.
fn has_cursor(kind: Option<OsString>) -> Result<(), NoPicture> {
    match kind {
        Some(kind) if !kind.is_empty() => {
            let named = kind.to_string_lossy();
            match kind::moves_cursor(&kind) {
                true => Ok(()),
                false => Err(NoPicture::NoCursor(named.into_owned())),
            }
        }
        _ => Err(NoPicture::NoKind),
    }
}

/// What the shell asks of this process as one of its jobs: to stop, which it does as soon as the terminal is as it was, and to go on.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    shared: Arc<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    /// Whether something is drawn, which is taken away before the process stops.
    is_drawing: AtomicBool,
    stop: AtomicBool,
    continued: AtomicBool,
}

impl Jobs {
    /// Listens from now on, and lets a job in the background use its terminal, rather than be stopped where it is not quick enough to see
    /// that it has been put there.
    ///
    /// # Errors
    /// If the system lets no handler be set.
    pub fn listen() -> io::Result<Self> {
        let jobs = Self::default();
        #[cfg(unix)]
        {
            use signal_hook::consts::{SIGCONT, SIGTSTP};
            use signal_hook::iterator::Signals;

            for signal in [libc::SIGTTOU, libc::SIGTTIN] {
                // SAFETY: ignoring a signal runs no code of ours.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            let mut signals = Signals::new([SIGTSTP, SIGCONT])?;
            let asked = jobs.shared.clone();
            std::thread::Builder::new().name("jobs".into()).spawn(move || {
                for signal in signals.forever() {
                    match signal {
                        SIGCONT => asked.continued.store(true, Ordering::Relaxed),
                        _ if asked.is_drawing.load(Ordering::Relaxed) => asked.stop.store(true, Ordering::Relaxed),
                        _ => stop_process(),
                    }
                }
            })?;
        }
        Ok(jobs)
    }

    /// Says whether something is drawn. While there is, whoever draws looks for [`Self::take_stop`] and calls [`stop_process`].
    pub fn set_drawing(&self, is_drawing: bool) {
        self.shared.is_drawing.store(is_drawing, Ordering::Relaxed);
    }

    /// Whether the process was asked to stop since the last time.
    pub fn take_stop(&self) -> bool {
        self.shared.stop.swap(false, Ordering::Relaxed)
    }

    /// Whether the process was continued since the last time.
    pub fn take_continued(&self) -> bool {
        self.shared.continued.swap(false, Ordering::Relaxed)
    }

    /// Asks every process of this job to stop, as a terminal does on Ctrl-Z that is not in raw mode.
    pub fn ask_to_stop(&self) {
        #[cfg(unix)]
        // SAFETY: the call takes numbers; 0 is the group of this process.
        unsafe {
            libc::kill(0, libc::SIGTSTP);
        }
    }
}

/// Stops this process until the shell continues it. Where there is no shell that could, it does nothing: the system then ignores the signal.
pub fn stop_process() {
    #[cfg(unix)]
    // SAFETY: the calls read and write structs of plain numbers that outlive them, of which all zeros is a valid value. The handler of
    // before is put back when the process goes on.
    unsafe {
        let mut handler: libc::sigaction = std::mem::zeroed();
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGTSTP, &raw const default, &raw mut handler);
        libc::raise(libc::SIGTSTP);
        libc::sigaction(libc::SIGTSTP, &raw const handler, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_must_have_a_kind_and_a_cursor() {
        let kind = |name: &str| has_cursor(Some(name.into()));
        for unset in [None, Some(OsString::new())] {
            assert_eq!(has_cursor(unset), Err(NoPicture::NoKind));
        }
        for name in ["dumb", "unknown"] {
            assert_eq!(kind(name), Err(NoPicture::NoCursor(name.into())));
        }
        for name in ["xterm", "xterm-256color", "vt100", "a-kind-of-next-year"] {
            assert_eq!(kind(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_stop_is_seen_once() {
        let jobs = Jobs::default();
        jobs.shared.stop.store(true, Ordering::Relaxed);
        assert!(jobs.take_stop() && !jobs.take_stop() && !jobs.take_continued());
    }
}
