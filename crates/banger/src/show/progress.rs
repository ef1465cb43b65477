//! Progress of long work on standard error: a moving line while it lasts, with
//! one below it for each part that is under way, and one line that stays for
//! each stage somebody had to wait for. Silent where standard error is no
//! terminal.

use std::time::{Duration, Instant};

use banger_api::operation::{PartEvent, ProgressEvent};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::size::about;
use super::{Style, escape, note, paint_stderr, warn, watched};

/// A stage that took longer leaves its line.
const WORTH_A_LINE: Duration = Duration::from_secs(1);
/// How often the moving line moves.
const TICK: Duration = Duration::from_millis(100);

/// The moving lines.
struct Drawn {
    all: MultiProgress,
    bar: ProgressBar,
    /// By their names.
    parts: Vec<(String, ProgressBar)>,
}

/// What is shown of the progress.
pub(crate) struct Progress {
    drawn: Option<Drawn>,
    /// Name of the present stage.
    name: String,
    /// The same with what is known of it.
    stage: String,
    since: Instant,
    /// Lines of log stay, where somebody watches.
    keeps_log: bool,
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

    /// The same for work whose log is worth reading while it goes on.
    pub(crate) fn with_log() -> Self {
        let mut this = Self::new();
        this.keeps_log = true;
        this
    }

    /// No drawing at all; warnings are said.
    pub(crate) fn hidden() -> Self {
        Self {
            drawn: None,
            name: String::new(),
            stage: String::new(),
            since: Instant::now(),
            keeps_log: false,
        }
    }

    fn drawn() -> Self {
        let all = MultiProgress::new();
        let bar = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        let parts = Vec::new();
        Self {
            drawn: Some(Drawn { all, bar, parts }),
            name: String::new(),
            stage: String::new(),
            since: Instant::now(),
            keeps_log: false,
        }
    }

    /// Whether anything is drawn.
    pub(crate) fn shown(&self) -> bool {
        self.drawn.is_some()
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
        if let Some(drawn) = &self.drawn {
            drawn.bar.set_message(self.stage.clone());
        }
    }

    /// Bytes of the present stage.
    pub(crate) fn bytes(&self, progress: ProgressEvent) {
        let Some(drawn) = &self.drawn else { return };
        let amount = amount(progress.bytes_done, progress.bytes_total);
        drawn.bar.set_message(format!("{}  {amount}", self.stage));
    }

    /// Bytes of a part of it; its line goes when it is complete.
    pub(crate) fn part(&mut self, part: &PartEvent) {
        let Some(drawn) = &mut self.drawn else { return };
        let known = drawn.parts.iter().position(|(name, _)| *name == part.part);
        if part.bytes_done >= part.bytes_total {
            if let Some(known) = known {
                drawn.parts.remove(known).1.finish_and_clear();
            }
            return;
        }
        let at = known.unwrap_or_else(|| {
            let bar = drawn.all.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("    {wide_msg}") {
                bar.set_style(style);
            }
            drawn.parts.push((part.part.clone(), bar));
            drawn.parts.len() - 1
        });
        let amount = amount(part.bytes_done, Some(part.bytes_total));
        let name = short(&part.part);
        drawn.parts[at].1.set_message(format!("{name}  {amount}"));
    }

    /// A line of log: warnings stay, notes stay where somebody watches, the
    /// rest passes by where it is not kept.
    pub(crate) fn log(&self, text: &str) {
        if let Some(warning) = text.strip_prefix("warning: ") {
            self.above(|| warn(warning));
        } else if self.shown() && (self.keeps_log || text.starts_with("note: ")) {
            self.line(text);
        } else if let Some(drawn) = &self.drawn {
            let text = format!("{}  {}", self.stage, escape(text));
            drawn.bar.set_message(text);
        }
    }

    /// A line that stays, where somebody watches.
    pub(crate) fn line(&self, text: &str) {
        self.lines().line(text);
    }

    /// For lines that stay while somebody else moves the moving line.
    pub(crate) fn lines(&self) -> Lines {
        Lines(self.drawn.as_ref().map(|drawn| drawn.all.clone()))
    }

    fn above(&self, say: impl FnOnce()) {
        match &self.drawn {
            Some(drawn) => drawn.all.suspend(say),
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
        if let Some(drawn) = &mut self.drawn {
            for (_, bar) in drawn.parts.drain(..) {
                bar.finish_and_clear();
            }
        }
    }

    fn clear(&mut self) {
        if let Some(drawn) = self.drawn.take() {
            for (_, bar) in &drawn.parts {
                bar.finish_and_clear();
            }
            drawn.bar.finish_and_clear();
        }
    }

    /// Takes the moving lines away; must come before anybody else uses the
    /// terminal.
    pub(crate) fn finish(&mut self) {
        self.end_stage();
        self.clear();
    }
}

fn amount(done: u64, total: Option<u64>) -> String {
    let here = about(done);
    match total {
        Some(total) => {
            let percent = done.saturating_mul(100) / total.max(1);
            format!("{here} of {} ({}%)", about(total), percent.min(100))
        }
        None => here,
    }
}

/// Of a digest as much as tells it from others, as other tools show it.
fn short(part: &str) -> String {
    let name = part.strip_prefix("sha256:").unwrap_or(part);
    escape(name).chars().take(12).collect()
}

/// Puts lines above the moving lines.
#[derive(Clone)]
pub(crate) struct Lines(Option<MultiProgress>);

impl Lines {
    /// A line that stays, where somebody watches.
    pub(crate) fn line(&self, text: &str) {
        if let Some(all) = &self.0 {
            all.suspend(|| note(&escape(text)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
