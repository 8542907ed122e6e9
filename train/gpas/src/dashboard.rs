//! What a person sees of a run: a dashboard on a terminal, else one readable line now and then. All are
//! [`MetricsRenderer`]s, which burn-train's learner feeds.

use std::io;

use burn_train::Interrupter;
use burn_train::renderer::MetricsRenderer;
use burn_train::renderer::tui::TuiMetricsRendererWrapper;
use clap::{Args, ValueEnum};
use gpas_train::metrics::Record;
use gpas_train::signals::StopRequest;
use gpas_train::training::Observer;

use crate::lines::PlainLines;
use crate::screen::{Screen, restore};
use crate::terminal::{Jobs, Stream};

/// The options that say how a run is shown.
#[derive(Clone, Copy, Debug, Args)]
pub struct DisplayArgs {
    /// How to show the run on a terminal whose foreground it is in [default: ours]; elsewhere, it is lines
    #[arg(long, value_enum, ignore_case = true, value_name = "WHICH")]
    dashboard: Option<Dashboard>,
    /// Print lines rather than show a dashboard: short for `--dashboard plain`
    #[arg(long, conflicts_with = "dashboard")]
    plain: bool,
}

/// How a run is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Dashboard {
    /// The dashboard of this program
    #[default]
    Ours,
    /// The one of burn-train 0.21, which keeps a core busy, sees no Ctrl-C (`q`, then `s` stops the run) and panics on `q`, then `k`
    Burn,
    /// Lines
    Plain,
}

impl DisplayArgs {
    /// What the options and standard output make of it. Says why where a dashboard that was asked for by name cannot be.
    ///
    /// # Errors
    /// If the system lets no handler of its signals be set.
    pub fn display(self) -> io::Result<Display> {
        let asked = self.dashboard.filter(|asked| *asked != Dashboard::Plain);
        let kind = match Stream::Output.takes_pictures() {
            _ if self.plain => Dashboard::Plain,
            Ok(()) => self.dashboard.unwrap_or_default(),
            Err(why) => {
                if asked.is_some() {
                    complain!("note: lines rather than the dashboard: {why}");
                }
                Dashboard::Plain
            }
        };
        let jobs = match kind {
            Dashboard::Plain => Jobs::default(),
            Dashboard::Ours | Dashboard::Burn => Jobs::listen()?,
        };
        Ok(Display { kind, jobs })
    }
}

/// How the runs of this process are shown.
#[derive(Clone, Debug)]
pub struct Display {
    kind: Dashboard,
    jobs: Jobs,
}

impl Display {
    /// What is to be done before the process leaves at once.
    pub fn on_leave(&self) -> fn() {
        match self.kind {
            Dashboard::Ours | Dashboard::Burn => restore,
            Dashboard::Plain => || (),
        }
    }

    /// Opens the display of a run of `steps` steps; lines where there is no terminal that takes it. Its keys ask `stop`, those of burn-train's
    /// dashboard the interrupter.
    pub fn open(self, steps: u64, stop: StopRequest, interrupter: &Interrupter) -> Box<dyn MetricsRenderer> {
        let lines = || Box::new(PlainLines::new(steps));
        match self.kind {
            Dashboard::Ours => match Screen::open(stop, self.jobs, steps) {
                Ok(screen) => Box::new(screen),
                Err(_) => lines(),
            },
            Dashboard::Burn => Box::new(TuiMetricsRendererWrapper::new(interrupter.clone(), None)),
            Dashboard::Plain => lines(),
        }
    }
}

/// Says what a run's owner should know: at once, or, when the run is over, what a dashboard would have covered.
pub struct Notices {
    kept: Option<Vec<String>>,
}

impl Notices {
    /// The notices of a run that is shown in this way.
    pub fn new(display: &Display) -> Self {
        Self {
            kept: (display.kind != Dashboard::Plain).then(Vec::new),
        }
    }
}

impl Observer for Notices {
    fn record(&mut self, record: &Record) -> io::Result<()> {
        if let Record::Notice(notice) = record {
            let line = format!("step {:>6}  {}", notice.step, notice.message);
            match &mut self.kept {
                Some(kept) => kept.push(line),
                None => complain!("{line}"),
            }
        }
        Ok(())
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        for line in self.kept.take().unwrap_or_default() {
            complain!("{line}");
        }
    }
}
