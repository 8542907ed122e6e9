//! The program in a terminal, as a shell runs it: in the foreground and in the background, stopped and continued, with its streams led
//! elsewhere. Each test has a shell of its own, with job control, in a pseudo-terminal.

#![cfg(unix)]

mod place;

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use place::{Place, of_kind};
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// What the dashboard writes when it takes the terminal, and when it gives it back.
const TAKEN: &str = "\x1b[?1049h";
const GIVEN_BACK: &str = "\x1b[?1049l";

/// A run that takes some seconds.
const LONG: &str = "--set train.steps=100000 --set eval.every=100000 --set checkpoint.every=100000";

/// An interactive shell in a terminal.
struct Shell {
    place: Place,
    shell: Box<dyn Child + Send + Sync>,
    keyboard: Box<dyn Write + Send>,
    screen: Arc<Mutex<Vec<u8>>>,
    _terminal: Box<dyn MasterPty + Send>,
}

impl Shell {
    fn start() -> Self {
        let place = Place::prepared();
        let size = PtySize {
            rows: 40,
            cols: 200,
            ..PtySize::default()
        };
        let terminal = native_pty_system().openpty(size).expect("a terminal");
        let mut command = CommandBuilder::new("bash");
        command.args(["--norc", "--noprofile", "-i"]);
        command.cwd(place.root());
        command.env("TERM", "xterm-256color");
        command.env("PS1", "$ ");
        command.env("G", env!("CARGO_BIN_EXE_gpas"));
        let shell = terminal.slave.spawn_command(command).expect("bash");
        let mut reader = terminal.master.try_clone_reader().expect("a terminal");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let seen = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                seen.lock().expect("no panic").extend_from_slice(&bytes[..count]);
            }
        });
        let keyboard = terminal.master.take_writer().expect("a terminal");
        let shell = Self {
            place,
            shell,
            keyboard,
            screen,
            _terminal: terminal.master,
        };
        shell.waits_for("$ ", |said| said.contains("$ "));
        shell
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a terminal");
        self.keyboard.flush().expect("a terminal");
    }

    /// Types a line and what shows its end, and waits for that.
    fn does(&mut self, line: &str) -> String {
        let before = self.said().len();
        // The shell echoes what is typed, so that the sign must differ from it.
        self.types(&format!("{line}; echo ended''-with $?\n"));
        self.waits_for(line, |said| said[before..].contains("ended-with "));
        self.said()[before..].to_string()
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("no panic")).into_owned()
    }

    fn waits_for(&self, what: &str, is_there: impl Fn(&str) -> bool) {
        let begin = Instant::now();
        while !is_there(&self.said()) {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "no {what} in\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn waits_for_times(&self, what: &str, times: usize) {
        self.waits_for(what, |said| said.matches(what).count() >= times);
    }

    fn steps(&self, run: &str) -> usize {
        let metrics = fs::read_to_string(self.place.path(run).join("metrics.jsonl")).unwrap_or_default();
        metrics.matches(r#""kind":"train""#).count()
    }

    fn waits_for_steps(&self, run: &str, more_than: usize) {
        self.waits_for(&format!("step {more_than} of {run}"), |_| self.steps(run) > more_than);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn a_job_in_the_background_trains_and_prints_lines() {
    let mut shell = Shell::start();
    for (number, options) in ["", "--dashboard ours", "--dashboard burn"].into_iter().enumerate() {
        let said = shell.does(&format!("\"$G\" train tiny.toml {options} -o run-{number} & wait $!"));
        assert!(said.contains("ended-with 0"), "{said}");
        assert!(said.contains("step      3/3  validation loss "), "{said}");
        assert!(!said.contains("Stopped") && !said.contains(TAKEN), "{said}");
        let why = "note: lines rather than the dashboard: the process is not in the foreground of its terminal";
        assert_eq!(said.contains(why), !options.is_empty(), "{said}");
        assert_eq!(shell.steps(&format!("run-{number}")), 3);
    }
    let said = shell.does("\"$G\" compare tiny.toml --schemes pre --seeds 1 -o both & wait $!");
    assert!(
        said.contains("ended-with 0") && said.contains("comparison both"),
        "{said}"
    );
    assert!(!said.contains("Stopped") && !said.contains(TAKEN), "{said}");
}

#[test]
fn a_progress_bar_in_the_background_draws_nothing() {
    let mut shell = Shell::start();
    // Here the terminal stops every process in the background that writes to it.
    shell.does("stty tostop");
    let corpus = place::corpus().repeat(40);
    shell.place.write("more.jsonl", corpus);
    for (number, command) in [
        "data prepare more.jsonl --tokenizer tokenizer.json --validation 0.2",
        "tokenizer train more.jsonl --vocab 300",
    ]
    .into_iter()
    .enumerate()
    {
        let said = shell.does(&format!("\"$G\" {command} -o new-{number} > said & wait $!"));
        assert!(said.contains("ended-with 0") && !said.contains("Stopped"), "{said}");
        assert!(!said.contains("% "), "{said}");
    }
}

#[test]
fn a_terminal_without_a_cursor_gets_lines_and_says_why() {
    let mut shell = Shell::start();
    for (number, (setting, why)) in [
        (
            "TERM=dumb",
            "a terminal of the kind `dumb` has no cursor that can be moved",
        ),
        ("TERM=", "the terminal's kind is not known, TERM is not set"),
        ("env -u TERM", "the terminal's kind is not known, TERM is not set"),
    ]
    .into_iter()
    .enumerate()
    {
        let said = shell.does(&format!(
            "{setting} \"$G\" train tiny.toml --dashboard ours -o named-{number}"
        ));
        assert!(
            said.contains(&format!("note: lines rather than the dashboard: {why}")),
            "{said}"
        );
        let quiet = shell.does(&format!("{setting} \"$G\" train tiny.toml -o run-{number}"));
        assert!(!quiet.contains("note: "), "{quiet}");
        for said in [said, quiet] {
            assert!(
                said.contains("ended-with 0") && said.contains("step      3/3  "),
                "{said}"
            );
            assert!(!said.contains(TAKEN), "{said}");
        }
    }
}

#[test]
fn streams_that_lead_elsewhere_change_only_what_they_carry() {
    let mut shell = Shell::start();
    for (number, (streams, is_drawn)) in [
        ("", true),
        ("</dev/null", true),
        ("<&-", true),
        ("2>errors", true),
        ("2>&-", true),
        (">lines", false),
        (">&-", false),
        ("| cat", false),
        ("2>errors | cat", false),
    ]
    .into_iter()
    .enumerate()
    {
        let said = shell.does(&format!("\"$G\" train tiny.toml -o run-{number} {streams}"));
        assert!(said.contains("ended-with 0"), "{streams}: {said}");
        assert_eq!(said.contains(TAKEN), is_drawn, "{streams}: {said}");
        assert_eq!(
            said.matches(TAKEN).count(),
            said.matches(GIVEN_BACK).count().min(1),
            "{streams}: {said}"
        );
        assert_eq!(shell.steps(&format!("run-{number}")), 3, "{streams}");
    }
    let said = shell.does("nohup \"$G\" train tiny.toml --dashboard ours -o hung");
    assert!(said.contains("ended-with 0") && !said.contains(TAKEN), "{said}");
    let lines = shell.place.read("nohup.out");
    assert!(lines.contains("step      3/3  "), "{lines}");
    // It writes standard error where it has led standard output.
    assert!(
        lines.contains("note: lines rather than the dashboard: standard output is not a terminal"),
        "{lines}"
    );
}

#[test]
fn a_run_that_is_stopped_and_continued_in_the_foreground_draws_again() {
    let mut shell = Shell::start();
    shell.types(&format!("\"$G\" train tiny.toml {LONG} -o run\n"));
    shell.waits_for_steps("run", 5);
    shell.waits_for_times(TAKEN, 1);
    shell.types("\x1a");
    let mut given_back = 1;
    // Stopped by its own key, by the signal of that key, and by the one that no process can catch.
    for (times, signal) in ["-TSTP", "-STOP", ""].into_iter().enumerate() {
        shell.waits_for_times("Stopped", times + 1);
        assert_eq!(shell.said().matches(GIVEN_BACK).count(), given_back, "{}", shell.said());
        let said = shell.does("stty -a; jobs -p");
        assert!(said.contains(" icanon") && said.contains(" echo "), "{said}");
        let job = said
            .lines()
            .filter_map(|line| line.trim().parse::<u32>().ok())
            .next_back();
        let stopped_at = shell.steps("run");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(shell.steps("run"), stopped_at, "it has gone on");
        shell.types("fg\n");
        shell.waits_for_times(TAKEN, times + 2);
        shell.waits_for_steps("run", stopped_at);
        if !signal.is_empty() {
            let job = job.expect("the number of the process").to_string();
            assert!(Command::new("kill").args([signal, &job]).status().unwrap().success());
            given_back += usize::from(signal == "-TSTP");
        }
    }
    shell.types("q");
    std::thread::sleep(Duration::from_millis(600));
    shell.types("s");
    shell.waits_for_times("`gpas train run --resume` goes on from there", 1);
    let said = shell.does("echo code $?");
    assert!(said.contains("code 130"), "{said}");
}

#[test]
fn a_run_that_is_continued_in_the_background_goes_on_with_lines() {
    let mut shell = Shell::start();
    shell.types(&format!("\"$G\" train tiny.toml {LONG} -o run\n"));
    shell.waits_for_steps("run", 5);
    shell.types("\x1a");
    shell.waits_for_times("Stopped", 1);
    let stopped_at = shell.steps("run");
    shell.does("bg");
    shell.waits_for_steps("run", stopped_at + 50);
    // Lines come every few seconds, and the terminal is the shell's.
    shell.waits_for(" tokens/s", |said| {
        said.rsplit(GIVEN_BACK)
            .next()
            .is_some_and(|said| said.contains(" tokens/s"))
    });
    let said = shell.does("stty -a");
    assert!(said.contains(" icanon") && said.contains(" echo "), "{said}");
    assert_eq!(shell.said().matches(TAKEN).count(), 1, "{}", shell.said());
    let said = shell.does("jobs");
    assert!(said.contains("Running"), "{said}");
    // In the foreground again, it draws.
    shell.types("fg\n");
    shell.waits_for_times(TAKEN, 2);
    shell.types("\x1a");
    shell.waits_for_times("Stopped", 2);
    // It ends in the background, and is not stopped by giving back what it has not.
    let said = shell.does("bg; kill -TERM %1; wait %1");
    assert!(said.contains("ended-with 143"), "{said}");
    let lines = shell.place.metrics("run");
    let steps = of_kind(&lines, "train").len();
    assert!(shell.place.path(&format!("run/checkpoints/step-{steps}")).is_dir());
}
