//! Where the time of a `run` went: a table for people, a line of JSON for
//! programs.

use std::time::Duration;

use banger_api::operation::Timing;
use serde::Serialize;

use super::table::Table;

/// Stages in the order they ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timings(Vec<Timing>);

impl Timings {
    /// Adds a stage of the client.
    pub(crate) fn add(&mut self, stage: &str, took: Duration) {
        self.0.push(Timing {
            stage: stage.to_owned(),
            ms: took.as_secs_f64() * 1000.0,
            beside: false,
        });
    }

    /// Adds the daemon's stages, which went on while the client waited for
    /// `waited`; what they do not explain becomes the stage `rest`.
    pub(crate) fn add_remote(&mut self, stages: &[Timing], waited: Duration, rest: &str) {
        let explained: f64 = stages.iter().map(Timing::own_ms).sum();
        self.0.extend_from_slice(stages);
        let ms = (waited.as_secs_f64() * 1000.0 - explained).max(0.0);
        self.0.push(Timing {
            stage: rest.to_owned(),
            ms,
            beside: false,
        });
    }

    /// Stage, milliseconds, share of the whole, running total. What went on
    /// beside other stages has neither of the last two.
    pub(crate) fn table(&self) -> String {
        let whole: f64 = self.0.iter().map(Timing::own_ms).sum();
        let mut table = Table::new(["STAGE", "MS", "SHARE", "TOTAL"]);
        let mut total = 0.0;
        for timing in &self.0 {
            if timing.beside {
                table.row([
                    timing.stage.clone(),
                    format!("{:.1}", timing.ms),
                    "beside".to_owned(),
                    String::new(),
                ]);
                continue;
            }
            total += timing.ms;
            let share = if whole > 0.0 {
                timing.ms / whole * 100.0
            } else {
                0.0
            };
            table.row([
                timing.stage.clone(),
                format!("{:.1}", timing.ms),
                format!("{share:.1}%"),
                format!("{total:.1}"),
            ]);
        }
        table.render()
    }
}

/// Last line of a `run --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary<'a> {
    /// Name of the VM; null when there was none.
    pub(crate) vm: Option<&'a str>,
    /// Status that the CLI exits with.
    pub(crate) exit_code: u8,
    /// Where the time went.
    pub(crate) timings: &'a [Timing],
}

impl Timings {
    /// The line of JSON.
    pub(crate) fn summary(&self, vm: Option<&str>, exit_code: u8) -> String {
        serde_json::to_string(&Summary {
            vm,
            exit_code,
            timings: &self.0,
        })
        .expect("strings and finite numbers are plain JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_totals_add_up_and_the_unexplained_is_named() {
        let mut timings = Timings::default();
        timings.add("connect", Duration::from_millis(10));
        let timing = |stage: &str, ms, beside| Timing {
            stage: stage.into(),
            ms,
            beside,
        };
        let remote = [
            timing("guest_nic_driver", 25.0, true),
            timing("boot_kernel", 60.0, false),
        ];
        timings.add_remote(&remote, Duration::from_millis(90), "attach");
        assert_eq!(
            timings.table(),
            "STAGE             MS    SHARE   TOTAL\n\
             connect           10.0  10.0%   10.0\n\
             guest_nic_driver  25.0  beside  -\n\
             boot_kernel       60.0  60.0%   70.0\n\
             attach            30.0  30.0%   100.0\n"
        );
    }

    #[test]
    fn the_summary_is_one_line_of_json() {
        let mut timings = Timings::default();
        timings.add("connect", Duration::from_millis(1));
        assert_eq!(
            timings.summary(Some("web"), 42),
            r#"{"vm":"web","exit_code":42,"timings":[{"stage":"connect","ms":1.0}]}"#
        );
        assert!(timings.summary(None, 125).starts_with(r#"{"vm":null,"#));
    }
}
