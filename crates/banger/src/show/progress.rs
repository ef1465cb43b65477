//! Progress of long work on standard error: one moving line while it lasts,
//! one line that stays for each stage somebody had to wait for. Silent where
//! standard error is no terminal.

use std::time::{Duration, Instant};

use banger_api::operation::ProgressEvent;
use indicatif::{ProgressBar, ProgressStyle};

use super::size::about;
use super::{Style, escape, note, paint_stderr, warn, watched};

/// A stage that took longer leaves its line.
const WORTH_A_LINE: Duration = Duration::from_secs(1);
/// How often the moving line moves.
const TICK: Duration = Duration::from_millis(100);

/// The moving line.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// Name of the present stage.
    name: String,
    /// The same with what is known of it.
    stage: String,
    since: Instant,
}

impl Progress {
    /// Progress of one piece of work; drawn only on a terminal.
    pub(crate) fn new() -> Self {
        if watched() {
            Self::drawn()
        } else {
            Self::hidden()
        }
    }

    /// No drawing at all; warnings are said.
    pub(crate) fn hidden() -> Self {
        Self {
            bar: None,
            name: String::new(),
            stage: String::new(),
            since: Instant::now(),
        }
    }

    fn drawn() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self {
            bar: Some(bar),
            name: String::new(),
            stage: String::new(),
            since: Instant::now(),
        }
    }

    /// Whether anything is drawn.
    pub(crate) fn shown(&self) -> bool {
        self.bar.is_some()
    }

    /// A stage begins, or more is known of the present one.
    pub(crate) fn stage(&mut self, stage: &str, detail: &str) {
        if stage != self.name {
            self.end_stage();
            self.since = Instant::now();
            stage.clone_into(&mut self.name);
        }
        self.stage = if detail.is_empty() {
            escape(stage)
        } else {
            format!("{} {}", escape(stage), escape(detail))
        };
        if let Some(bar) = &self.bar {
            bar.set_message(self.stage.clone());
        }
    }

    /// Bytes of the present stage.
    pub(crate) fn bytes(&self, progress: ProgressEvent) {
        let Some(bar) = &self.bar else { return };
        let done = about(progress.bytes_done);
        let amount = match progress.bytes_total {
            Some(total) => {
                let percent = progress.bytes_done.saturating_mul(100) / total.max(1);
                format!("{done} of {} ({}%)", about(total), percent.min(100))
            }
            None => done,
        };
        bar.set_message(format!("{}  {amount}", self.stage));
    }

    /// A line of log: warnings stay, notes stay where somebody watches, the
    /// rest passes by.
    pub(crate) fn log(&self, text: &str) {
        if let Some(warning) = text.strip_prefix("warning: ") {
            self.above(|| warn(warning));
        } else if self.shown() && text.starts_with("note: ") {
            self.line(text);
        } else if let Some(bar) = &self.bar {
            bar.set_message(format!("{}  {}", self.stage, escape(text)));
        }
    }

    /// A line that stays, where somebody watches.
    pub(crate) fn line(&self, text: &str) {
        self.lines().line(text);
    }

    /// For lines that stay while somebody else moves the moving line.
    pub(crate) fn lines(&self) -> Lines {
        Lines(self.bar.clone())
    }

    fn above(&self, say: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    fn end_stage(&mut self) {
        let took = self.since.elapsed();
        if !self.stage.is_empty() && took >= WORTH_A_LINE {
            let text = format!("{}  {:.1} s", self.stage, took.as_secs_f64());
            if self.shown() {
                self.above(|| note(&paint_stderr(Style::Faint, &text)));
            }
        }
        self.stage.clear();
    }

    /// Takes the moving line away; must come before anybody else uses the
    /// terminal.
    pub(crate) fn finish(&mut self) {
        self.end_stage();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Puts lines above the moving line.
#[derive(Clone)]
pub(crate) struct Lines(Option<ProgressBar>);

impl Lines {
    /// A line that stays, where somebody watches.
    pub(crate) fn line(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.suspend(|| note(&escape(text)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
