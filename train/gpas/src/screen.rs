//! The dashboard: burn-train's, drawn anew, because the thread of burn-train 0.21's never sleeps (a whole core), swallows Ctrl-C and
//! answers one of its own keys with a panic.
//!
//! ```text
//! ┌Controls─┐┌Plots──────────────┐
//! ├Metrics──┤│                   │
//! ├Status───┤│                   │
//! └─────────┘└───────────────────┘
//! ┌Progress──────────────────────┐
//! ```
//!
//! It is a [`MetricsRenderer`], which burn-train's learner feeds. Its thread sleeps until a key comes or a quarter of a second has passed, and
//! draws only what has changed.
//!
//! The terminal belongs to the shell, which lends it to the job in the foreground. On Ctrl-Z the screen gives it back and the process stops;
//! continued in the foreground, it draws anew. Continued in the background, it leaves the terminal alone, prints lines, and draws again as
//! soon as it is in the foreground.

use std::io::{self, Stdout, stdout};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use burn::data::dataloader::Progress;
use burn_train::LearnerSummary;
use burn_train::metric::{MetricDefinition, MetricId, NumericEntry};
use burn_train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};
use indicatif::HumanDuration;
use ratatui::Frame;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear as ClearTerminal, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::prelude::{Color, CrosstermBackend, Line, Modifier, Style, Stylize, Terminal};
use ratatui::symbols::Marker;
use ratatui::widgets::{Axis, Block, Chart, Clear, Dataset, Gauge, GraphType, Paragraph, Tabs, Wrap};

use crate::lines::PlainLines;
use crate::shown::{declared_names, step};
use crate::terminal::{Jobs, Stream, stop_process};
use crate::tuning;
use gpas_train::signals::{Stop, StopRequest};

/// Time between two pictures.
const PERIOD: Duration = Duration::from_millis(250);
/// How long the end of a run waits for the last picture.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is shown that a kernel was chosen.
const NEWS: Duration = Duration::from_secs(30);
/// Points that a curve keeps at most; of more, every second one goes.
const POINTS: usize = 1024;
/// Points of the recent history.
const RECENT: usize = 128;

const TRAIN: Color = Color::LightRed;
const VALID: Color = Color::LightBlue;

/// The open dashboard; dropping it gives the terminal back.
pub struct Screen {
    state: Arc<Mutex<State>>,
    /// What there is to see while the process is in the background.
    lines: PlainLines,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    // Given back in this order.
    _hook: PanicHook,
    _terminal: Taken,
}

/// A terminal that is in raw mode; dropping it gives it back, be it that the rest of opening the dashboard fails.
struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        restore();
    }
}

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// A panic hook that gives the terminal back before the panic's message is written; dropping it puts the hook back that was there.
struct PanicHook {
    previous: Option<Arc<Hook>>,
}

impl PanicHook {
    fn new() -> Self {
        let previous: Arc<Hook> = Arc::new(std::panic::take_hook());
        let next = previous.clone();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            next(panic);
        }));
        Self {
            previous: Some(previous),
        }
    }
}

impl Drop for PanicHook {
    fn drop(&mut self) {
        // In a thread that panics, a hook can be neither taken nor set.
        if !std::thread::panicking() {
            drop(std::panic::take_hook());
            if let Some(previous) = self.previous.take().and_then(Arc::into_inner) {
                std::panic::set_hook(previous);
            }
        }
    }
}

impl Screen {
    /// Takes the terminal for a run of `steps` steps. `q` and Ctrl-C there ask `stop`, Ctrl-Z asks `jobs`.
    ///
    /// # Errors
    /// If there is no terminal that takes it; what there is of it is then as it was.
    pub fn open(stop: StopRequest, jobs: Jobs, steps: u64) -> io::Result<Self> {
        enable_raw_mode()?;
        let taken = Taken;
        execute!(stdout(), EnterAlternateScreen)?;
        let terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        let hook = PanicHook::new();
        let state = Arc::new(Mutex::new(State {
            steps: usize::try_from(steps).unwrap_or(usize::MAX),
            ..State::default()
        }));
        let closing = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("dashboard".into()).spawn({
            let (state, closing) = (state.clone(), closing.clone());
            move || {
                jobs.set_drawing(true);
                show(terminal, &state, &closing, &stop, &jobs);
                jobs.set_drawing(false);
            }
        })?;
        Ok(Self {
            state,
            lines: PlainLines::new(steps),
            closing,
            thread: Some(thread),
            _hook: hook,
            _terminal: taken,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Notes how far the run has come; whether lines are to say so.
    fn at(&self, step: usize, is_validating: bool) -> bool {
        let mut state = self.state();
        let progress = Progress::new(step, state.steps);
        state.at(progress, is_validating);
        state.is_hidden
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let begin = Instant::now();
            while !thread.is_finished() && begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(5));
            }
            // The thread of a terminal that has gone may wait for events for ever, and the run is to end all the same.
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// Gives the terminal back as it was. In the background it is the shell's already.
pub fn restore() {
    if Stream::Output.is_foreground() {
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

/// Takes the terminal again, whatever mode and picture the shell has left it in. What is drawn next is drawn whole: clearing what is there
/// would ask the terminal for the place of its cursor, which not every one answers.
fn take_again() -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    disable_raw_mode()?;
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, ClearTerminal(ClearType::All))?;
    Terminal::new(CrosstermBackend::new(stdout()))
}

/// What is shown is plain numbers: a thread that panicked has left them whole.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Draws until the end. A terminal that has gone ends it too; the run goes on.
fn show(
    terminal: Terminal<CrosstermBackend<Stdout>>,
    state: &Mutex<State>,
    closing: &AtomicBool,
    stop: &StopRequest,
    jobs: &Jobs,
) {
    if draw_until(terminal, state, closing, stop, jobs).is_err() {
        // A terminal that fails is given back, and lines go on.
        lock(state).is_hidden = true;
        restore();
    }
}

/// Draws and listens until the run closes the screen.
fn draw_until(
    mut terminal: Terminal<CrosstermBackend<Stdout>>,
    state: &Mutex<State>,
    closing: &AtomicBool,
    stop: &StopRequest,
    jobs: &Jobs,
) -> io::Result<()> {
    while !closing.load(Ordering::Relaxed) {
        if !follow(&mut terminal, state, jobs)? {
            std::thread::sleep(PERIOD);
            continue;
        }
        {
            let mut state = lock(state);
            state.stopping = stop.requested().is_some();
            state.note_chosen(tuning::chosen(), Instant::now());
            let changed = std::mem::take(&mut state.changed);
            if changed {
                terminal.draw(|frame| state.draw(frame))?;
            }
        }
        if event::poll(PERIOD)? {
            let event = event::read()?;
            lock(state).handle(&event, stop, jobs);
        }
    }
    Ok(())
}

/// Does what the shell asks: stops, and goes on with or without the terminal. Whether there is one to draw on.
fn follow(terminal: &mut Terminal<CrosstermBackend<Stdout>>, state: &Mutex<State>, jobs: &Jobs) -> io::Result<bool> {
    if jobs.take_stop() {
        lock(state).is_hidden = true;
        restore();
        stop_process();
    }
    let was_continued = jobs.take_continued();
    let mut state = lock(state);
    if !Stream::Output.is_foreground() {
        state.is_hidden = true;
        return Ok(false);
    }
    if state.is_hidden || was_continued {
        *terminal = take_again()?;
        (state.is_hidden, state.changed) = (false, true);
    }
    Ok(true)
}

/// Everything that is shown.
#[derive(Default)]
struct State {
    metrics: Vec<Metric>,
    selected: usize,
    recent: bool,
    asking: bool,
    stopping: bool,
    changed: bool,
    is_validating: bool,
    /// Whether the terminal is the shell's for now.
    is_hidden: bool,
    /// Steps of the whole run.
    steps: usize,
    progress: Option<Progress>,
    /// Kernels that this process has [chosen](tuning::chosen), and when the newest was, as long as that is news.
    chosen: (u64, Option<Instant>),
    /// When the first progress came, and how far it was.
    begun: Option<(Instant, usize)>,
}

/// One metric with its two curves.
struct Metric {
    id: MetricId,
    name: String,
    unit: String,
    train: Curve,
    valid: Curve,
}

/// The course of a number.
#[derive(Default)]
struct Curve {
    text: String,
    /// Every `stride`-th value with its step.
    whole: Vec<(f64, f64)>,
    stride: usize,
    seen: usize,
    recent: Vec<(f64, f64)>,
}

impl Curve {
    fn push(&mut self, step: f64, value: f64) {
        self.stride = self.stride.max(1);
        if self.seen.is_multiple_of(self.stride) {
            self.whole.push((step, value));
        }
        self.seen += 1;
        if self.whole.len() == POINTS {
            let mut index = 0;
            self.whole.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push((step, value));
    }
}

impl State {
    fn update(&mut self, state: MetricState, is_train: bool) {
        let (entry, value) = match state {
            MetricState::Generic(entry) => (entry, None),
            MetricState::Numeric(entry, value) => (entry, Some(value)),
        };
        let step = self.progress.as_ref().map_or(0, |progress| progress.items_processed) as f64;
        let Some(metric) = self.metrics.iter_mut().find(|metric| metric.id == entry.metric_id) else {
            return;
        };
        let curve = if is_train { &mut metric.train } else { &mut metric.valid };
        curve.text = entry.serialized_entry.formatted;
        let value = match value {
            Some(NumericEntry::Value(value)) => value,
            Some(NumericEntry::Aggregated { aggregated_value, .. }) => aggregated_value,
            None => return,
        };
        if value.is_finite() {
            curve.push(step, value);
        }
        self.changed = true;
    }

    fn note_chosen(&mut self, chosen: u64, now: Instant) {
        let is_old = |newest: Instant| now >= newest + NEWS;
        if chosen > self.chosen.0 {
            self.chosen = (chosen, Some(now));
            self.changed = true;
        } else if self.chosen.1.is_some_and(is_old) {
            self.chosen.1 = None;
            self.changed = true;
        }
    }

    fn at(&mut self, progress: Progress, is_validating: bool) {
        let done = progress.items_processed;
        self.begun.get_or_insert((Instant::now(), done));
        self.progress = Some(progress);
        self.is_validating = is_validating;
        self.changed = true;
    }

    /// Puts a metric to its place: the declared ones in their order, then the others by name.
    fn register(&mut self, metric: Metric) {
        let rank = |name: &str| {
            declared_names()
                .position(|declared| declared == name)
                .unwrap_or(usize::MAX)
        };
        let key = (rank(&metric.name), metric.name.clone());
        let place = self
            .metrics
            .partition_point(|other| (rank(&other.name), other.name.clone()) < key);
        self.metrics.insert(place, metric);
    }

    fn handle(&mut self, event: &Event, stop: &StopRequest, jobs: &Jobs) {
        self.changed = true;
        let Event::Key(KeyEvent {
            code,
            modifiers,
            kind: KeyEventKind::Press,
            ..
        }) = event
        else {
            return;
        };
        let count = self.metrics.len().max(1);
        match code {
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => stop.arrive(Stop::Interrupt),
            KeyCode::Char('z') if modifiers.contains(KeyModifiers::CONTROL) => jobs.ask_to_stop(),
            KeyCode::Char('s') if self.asking => {
                self.asking = false;
                stop.request(Stop::Interrupt);
            }
            KeyCode::Char('k') if self.asking => stop.leave(Stop::Interrupt),
            KeyCode::Char('c') | KeyCode::Esc if self.asking => self.asking = false,
            KeyCode::Char('q') => self.asking = true,
            KeyCode::Right => self.selected = (self.selected + 1) % count,
            KeyCode::Left => self.selected = (self.selected + count - 1) % count,
            KeyCode::Up | KeyCode::Down => self.recent = !self.recent,
            _ => {}
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let [upper, lower] = Layout::vertical([Constraint::Min(16), Constraint::Length(4)]).areas(frame.area());
        let [left, right] = Layout::horizontal([Constraint::Length(40), Constraint::Fill(1)]).areas(upper);
        let [controls, metrics, status] =
            Layout::vertical([Constraint::Length(5), Constraint::Fill(1), Constraint::Length(5)]).areas(left);
        draw_controls(frame, controls);
        self.draw_metrics(frame, metrics);
        self.draw_status(frame, status);
        self.draw_plot(frame, right);
        self.draw_progress(frame, lower);
        if self.asking {
            draw_question(frame);
        }
    }

    fn draw_metrics(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut lines = Vec::new();
        for metric in &self.metrics {
            let value = |text: &str| format!("{text} {}", metric.unit).trim_end().to_string();
            let curves = [("Train", TRAIN, &metric.train), ("Valid", VALID, &metric.valid)];
            let shown = curves.iter().filter(|(_, _, curve)| !curve.text.is_empty());
            if shown.clone().next().is_some() {
                lines.push(Line::from(metric.name.clone()).bold());
            }
            for (name, color, curve) in shown {
                lines.push(Line::from(vec![
                    format!(" {name} ").fg(*color),
                    value(&curve.text).into(),
                ]));
            }
        }
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Metrics")), area);
    }

    fn draw_status(&self, frame: &mut Frame<'_>, area: Rect) {
        let mode = match (self.stopping, self.is_validating) {
            (true, _) => "Stopping after this step",
            (false, true) => "Validating",
            (false, false) => "Training",
        };
        let mut lines = vec![Line::from(format!("Mode : {mode}"))];
        if let Some(progress) = &self.progress {
            lines.push(Line::from(format!("Step : {}", progress.items_processed)));
        }
        if let (chosen, Some(_)) = self.chosen {
            lines.push(Line::from(tuning::line(chosen)));
        }
        let status = Paragraph::new(lines).wrap(Wrap { trim: true });
        frame.render_widget(status.block(Block::bordered().title("Status")), area);
    }

    fn draw_plot(&self, frame: &mut Frame<'_>, area: Rect) {
        let block = Block::bordered().title("Plots");
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let Some(metric) = self.metrics.get(self.selected) else {
            return;
        };
        let [tabs, plot] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(inner);
        // The chosen one first, so that it is seen however narrow the terminal is.
        let (before, from) = self.metrics.split_at(self.selected);
        let names = from.iter().chain(before).map(|metric| metric.name.clone());
        frame.render_widget(
            Tabs::new(names)
                .select(0)
                .highlight_style(Style::new().add_modifier(Modifier::REVERSED)),
            tabs,
        );
        let points = |curve| -> &[(f64, f64)] {
            let curve: &Curve = curve;
            if self.recent { &curve.recent } else { &curve.whole }
        };
        let (train, valid) = (points(&metric.train), points(&metric.valid));
        let from = train.first().map_or(f64::NEG_INFINITY, |(step, _)| *step);
        // The recent history of training is not stretched to an evaluation long before it.
        let valid: Vec<_> = valid
            .iter()
            .copied()
            .filter(|(step, _)| !self.recent || *step >= from)
            .collect();
        let all = || train.iter().chain(&valid);
        let range = |of: fn(&(f64, f64)) -> f64| {
            let low = all().map(of).fold(f64::INFINITY, f64::min);
            let high = all().map(of).fold(f64::NEG_INFINITY, f64::max);
            if low < high {
                [low, high]
            } else {
                [low - 0.5, low + 0.5]
            }
        };
        if all().next().is_none() {
            return;
        }
        let (steps, values) = (range(|point| point.0), range(|point| point.1));
        let curve = |name: &'static str, color, points| {
            Dataset::default()
                .name(name)
                .marker(Marker::Braille)
                .graph_type(GraphType::Line)
                .style(Style::new().fg(color))
                .data(points)
        };
        let sets = vec![curve("Train", TRAIN, train), curve("Valid", VALID, &valid)];
        let title = if self.recent { "Recent History" } else { "Full History" };
        let chart = Chart::new(sets)
            .block(Block::new().title(Line::from(title).centered()))
            .x_axis(
                Axis::default()
                    .title("Step")
                    .bounds(steps)
                    .labels(steps.map(|step| format!("{step:.0}"))),
            )
            .y_axis(Axis::default().bounds(values).labels(values.map(short)));
        frame.render_widget(chart, plot);
    }

    fn draw_progress(&self, frame: &mut Frame<'_>, area: Rect) {
        let block = Block::bordered().title("Progress");
        let Some(progress) = &self.progress else {
            frame.render_widget(block, area);
            return;
        };
        let (done, total) = (progress.items_processed, progress.items_total.max(1));
        let ratio = (done as f64 / total as f64).clamp(0.0, 1.0);
        let left = self.begun.and_then(|(since, at)| {
            let made = done.checked_sub(at).filter(|made| *made > 0)?;
            let each = since.elapsed().as_secs_f64() / made as f64;
            Duration::try_from_secs_f64(each * total.saturating_sub(done) as f64).ok()
        });
        let left = left.map_or(String::new(), |left| format!(", {} left", HumanDuration(left)));
        let gauge = Gauge::default()
            .block(block)
            .gauge_style(Style::new().fg(Color::Yellow))
            .ratio(ratio)
            .label(format!("{done}/{total}{left}"));
        frame.render_widget(gauge, area);
    }
}

fn draw_controls(frame: &mut Frame<'_>, area: Rect) {
    let lines = vec![
        Line::from(" Quit          : q    Stop the run"),
        Line::from(" Plots Metrics : ⬅ ➡  Switch metric"),
        Line::from(" Plots Type    : ⬆ ⬇  Whole or recent"),
    ];
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Controls")), area);
}

fn draw_question(frame: &mut Frame<'_>) {
    let [_, middle, _] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(8), Constraint::Fill(1)]).areas(frame.area());
    let [_, area, _] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(62), Constraint::Fill(1)]).areas(middle);
    let lines = vec![
        Line::from(""),
        Line::from(" s  Stop after this step, with a checkpoint"),
        Line::from(" k  Leave at once; the last checkpoint is whole"),
        Line::from(" c  Cancel"),
        Line::from(""),
        Line::from(" `gpas train RUN --resume` goes on either way").dim(),
    ];
    frame.render_widget(Clear, area);
    let question = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(question.block(Block::bordered().title("Quit")), area);
}

fn copy(state: &MetricState) -> MetricState {
    match state {
        MetricState::Generic(entry) => MetricState::Generic(entry.clone()),
        MetricState::Numeric(entry, value) => MetricState::Numeric(entry.clone(), value.clone()),
    }
}

/// A number in few characters.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (1e-2..1e5).contains(&size) => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

impl MetricsRendererTraining for Screen {
    fn update_train(&mut self, state: MetricState) {
        self.lines.update_train(copy(&state));
        self.state().update(state, true);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.lines.update_valid(copy(&state));
        self.state().update(state, false);
    }

    fn render_train(&mut self, item: TrainingProgress, progress_indicators: Vec<ProgressType>) {
        if self.at(step(&item), false) {
            self.lines.render_train(item, progress_indicators);
        }
    }

    fn render_valid(&mut self, item: TrainingProgress, progress_indicators: Vec<ProgressType>) {
        if self.at(step(&item), true) {
            self.lines.render_valid(item, progress_indicators);
        }
    }

    fn on_train_end(&mut self, _summary: Option<LearnerSummary>) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }
}

impl MetricsRendererEvaluation for Screen {
    fn update_test(&mut self, _name: EvaluationName, state: MetricState) {
        self.state().update(state, false);
    }

    fn render_test(&mut self, item: EvaluationProgress, _progress_indicators: Vec<ProgressType>) {
        self.state().at(item.progress, true);
    }
}

impl MetricsRenderer for Screen {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        use burn_train::metric::{MetricAttributes, NumericAttributes};
        self.lines.register_metric(definition.clone());
        let unit = match definition.attributes {
            MetricAttributes::Numeric(NumericAttributes { unit, .. }) => unit.unwrap_or_default(),
            MetricAttributes::None => String::new(),
        };
        self.state().register(Metric {
            id: definition.metric_id,
            name: definition.name,
            unit,
            train: Curve::default(),
            valid: Curve::default(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_train::metric::{MetricEntry, SerializedEntry};
    use ratatui::backend::TestBackend;

    fn state(metrics: &[&str]) -> State {
        State {
            metrics: metrics
                .iter()
                .map(|name| Metric {
                    id: MetricId::new(name.to_string().into()),
                    name: name.to_string(),
                    unit: String::new(),
                    train: Curve::default(),
                    valid: Curve::default(),
                })
                .collect(),
            ..State::default()
        }
    }

    fn number(name: &str, value: f64) -> MetricState {
        let entry = SerializedEntry::new(format!("{value:.4}"), value.to_string());
        let entry = MetricEntry::new(MetricId::new(name.to_string().into()), entry);
        MetricState::Numeric(entry, NumericEntry::Value(value))
    }

    fn picture(state: &State) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 30)).unwrap();
        terminal.draw(|frame| state.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_picture_has_numbers_curves_and_progress() {
        let mut state = state(&["Loss", "Perplexity"]);
        for step in 1..=50 {
            state.at(Progress::new(step, 200), false);
            state.update(number("Loss", 9.0 - step as f64 / 10.0), true);
        }
        state.update(number("Perplexity", f64::NAN), false);
        let picture = picture(&state);
        for expected in [
            "Train 4.0000",
            "Valid NaN",
            "Full History",
            "50/200",
            "Mode : Training",
            "8.90",
            "4.00",
        ] {
            assert!(picture.contains(expected), "{expected}:\n{picture}");
        }
        assert!(
            state.metrics[1].valid.whole.is_empty(),
            "no curve of what is not finite"
        );
    }

    #[test]
    fn metrics_have_their_places_in_whatever_order_they_come() {
        let mut shown = State::default();
        for metric in state(&["Learning rate", "Zeal", "Perplexity", "Anything", "Loss"]).metrics {
            shown.register(metric);
        }
        let names: Vec<_> = shown.metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["Loss", "Perplexity", "Learning rate", "Anything", "Zeal"]);
    }

    #[test]
    fn keys_choose_and_ask_and_stop() {
        let mut state = state(&["Loss", "Perplexity"]);
        let stop = StopRequest::default();
        let mut press = |code| {
            state.handle(
                &Event::Key(KeyEvent::new(code, KeyModifiers::NONE)),
                &stop,
                &Jobs::default(),
            );
            (state.selected, state.asking, stop.requested())
        };
        assert_eq!(press(KeyCode::Right), (1, false, None));
        assert_eq!(press(KeyCode::Right), (0, false, None));
        assert_eq!(press(KeyCode::Left), (1, false, None));
        assert_eq!(press(KeyCode::Char('s')), (1, false, None), "nothing was asked");
        assert_eq!(press(KeyCode::Char('q')), (1, true, None));
        assert_eq!(press(KeyCode::Char('c')), (1, false, None));
        press(KeyCode::Char('q'));
        assert_eq!(press(KeyCode::Char('s')), (1, false, Some(Stop::Interrupt)));
    }

    #[test]
    fn a_long_curve_keeps_its_ends_in_bounded_memory() {
        let mut curve = Curve::default();
        for step in 0..100_000 {
            curve.push(f64::from(step), 1.0);
        }
        assert!(curve.whole.len() < POINTS && curve.whole.len() >= POINTS / 2);
        assert_eq!((curve.whole[0].0, curve.recent.len()), (0.0, RECENT));
        assert!(curve.whole.last().unwrap().0 > 99_000.0);
        assert_eq!(curve.recent.last().unwrap().0, 99_999.0);
    }
}
