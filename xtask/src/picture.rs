//! `cargo xtask picture`: the README's picture of the dashboard, from a real run.
//!
//! It starts `gpas train` in a terminal of a fixed size, reads what the program writes to it as a terminal would, and after some steps of
//! training draws the screen.

use std::fs;
use std::io::Read;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use portable_pty::{CommandBuilder, PtySize, native_pty_system};

use crate::peers::{build, root};
use crate::terminal::drawing;

/// Draw the dashboard of a real run for the README
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask picture
  cargo xtask picture --step 300 --out /tmp/dashboard.svg -- --dashboard burn")]
pub struct PictureArgs {
    /// After how many steps of training
    #[arg(long, value_name = "N", default_value_t = 1000)]
    step: usize,
    /// Columns of the terminal
    #[arg(long, value_name = "N", default_value = "112")]
    columns: NonZeroU16,
    /// Rows of the terminal
    #[arg(long, value_name = "N", default_value = "32")]
    rows: NonZeroU16,
    /// The file [default: train/assets/dashboard.svg]
    #[arg(long, value_name = "FILE.svg")]
    out: Option<PathBuf>,
    /// The program [default: it is built]
    #[arg(long, value_name = "FILE")]
    gpas: Option<PathBuf>,
    /// Further options of `gpas train`
    #[arg(last = true, value_name = "OPTION")]
    train: Vec<String>,
}

/// How long nothing may come before the run is looked at again.
const POLL: Duration = Duration::from_millis(100);
/// How long the screen may take to show what has been recorded.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// Trains, draws and leaves.
///
/// # Errors
/// If the program does not build or ends before its time, or the file cannot be written.
pub fn run(args: &PictureArgs) -> Result<()> {
    let gpas = match &args.gpas {
        Some(gpas) => gpas.clone(),
        None => build(&[])?,
    };
    let place = tempfile::tempdir()?;
    let run = place.path().join("run");
    let mut command = CommandBuilder::new(&gpas);
    command.arg("train");
    command.args(&args.train);
    command.arg("-o");
    command.arg(&run);
    command.cwd(root()?);
    command.env("TERM", "xterm-256color");

    let size = PtySize {
        rows: args.rows.get(),
        cols: args.columns.get(),
        pixel_width: 0,
        pixel_height: 0,
    };
    let pair = native_pty_system().openpty(size)?;
    let mut child = pair.slave.spawn_command(command)?;
    drop(pair.slave);
    let written = read_all(pair.master.try_clone_reader()?);
    let mut terminal = vt100::Parser::new(args.rows, args.columns, 0);
    let drawn = watch(&mut terminal, &written, &run.join("metrics.jsonl"), args.step);
    // It has done what it was started for; its run is thrown away.
    child.kill()?;
    child.wait()?;
    drawn?;

    let out = match &args.out {
        Some(out) => out.clone(),
        None => root()?.join("train/assets/dashboard.svg"),
    };
    let title = ["gpas train".to_string()].into_iter().chain(args.train.iter().cloned());
    let title = title.collect::<Vec<_>>().join(" ");
    fs::write(&out, drawing(terminal.screen(), &title))?;
    println!("picture {}", out.display());
    Ok(())
}

/// Everything that is written to a terminal, piece by piece as it comes.
fn read_all(mut terminal: Box<dyn Read + Send>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // Once the program has ended, reading is an error or has an end.
        while let Ok(count @ 1..) = terminal.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Keeps the terminal up to date until the run has done so many steps and the screen has had time to show them.
fn watch(terminal: &mut vt100::Parser, written: &Receiver<Vec<u8>>, metrics: &Path, step: usize) -> Result<()> {
    let begin = Instant::now();
    let mut reached = None;
    let mut looked = begin;
    loop {
        match written.recv_timeout(POLL) {
            Ok(bytes) => terminal.process(&bytes),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("gpas train has ended:\n{}", terminal.screen().contents()),
        }
        if reached.is_none() && looked.elapsed() > POLL {
            looked = Instant::now();
            reached = (steps_done(metrics) >= step).then_some(looked);
        }
        if reached.is_some_and(|reached| reached.elapsed() > SETTLE) {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < LIMIT,
            "step {step} was not reached in {} s",
            LIMIT.as_secs()
        );
    }
}

/// Steps of training that a run has recorded; none before it has begun.
fn steps_done(metrics: &Path) -> usize {
    let text = fs::read_to_string(metrics).unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("{\"kind\":\"train\""))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_writes_is_on_the_screen() {
        let pair = native_pty_system()
            .openpty(PtySize {
                rows: 4,
                cols: 20,
                pixel_width: 0,
                pixel_height: 0,
            })
            .unwrap();
        let mut command = CommandBuilder::new("sh");
        command.args(["-c", "printf '\\033[2;3Hhello'; sleep 60"]);
        let mut child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let written = read_all(pair.master.try_clone_reader().unwrap());
        let place = tempfile::tempdir().unwrap();
        let metrics = place.path().join("metrics.jsonl");
        fs::write(
            &metrics,
            "{\"kind\":\"eval\"}\n{\"kind\":\"train\"}\n{\"kind\":\"train\"}\n",
        )
        .unwrap();
        assert_eq!(steps_done(&metrics), 2);
        let mut terminal = vt100::Parser::new(NonZeroU16::new(4).unwrap(), NonZeroU16::new(20).unwrap(), 0);
        watch(&mut terminal, &written, &metrics, 2).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(terminal.screen().contents().trim(), "hello");
        let drawn = drawing(terminal.screen(), "sh");
        assert!(drawn.contains("hello"), "{drawn}");
    }
}
