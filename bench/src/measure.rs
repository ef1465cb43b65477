//! Series of measured runs, and what is said of them: medians and spread.

use std::fmt::Write as _;
use std::time::Duration;

/// One measured run.
pub(crate) struct Run {
    /// From the start of the process to its end.
    pub(crate) wall: Duration,
    /// Name and milliseconds of each stage, in order.
    pub(crate) stages: Vec<(String, f64)>,
}

impl Run {
    /// Milliseconds of a stage; zero where there was none.
    fn stage(&self, name: &str) -> f64 {
        let stage = self.stages.iter().find(|(stage, _)| stage == name);
        stage.map_or(0.0, |(_, ms)| *ms)
    }
}

/// Runs of the same thing.
#[derive(Default)]
pub(crate) struct Series {
    runs: Vec<Run>,
}

impl Series {
    /// Adds a run.
    pub(crate) fn push(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// Wall times in milliseconds, in the order measured.
    pub(crate) fn walls(&self) -> Vec<f64> {
        self.runs
            .iter()
            .map(|run| run.wall.as_secs_f64() * 1000.0)
            .collect()
    }

    /// A table of the stages: median, minimum, maximum.
    pub(crate) fn table(&self, title: &str) -> String {
        let mut text = format!(
            "{title}\n  {:<18} {:>9} {:>9} {:>9}\n",
            "", "median", "min", "max"
        );
        let first = self.runs.first().map_or(&[][..], |run| &run.stages);
        for (name, _) in first {
            let times: Vec<f64> = self
                .runs
                .iter()
                .filter_map(|run| run.stages.iter().find(|(stage, _)| stage == name))
                .map(|(_, ms)| *ms)
                .collect();
            line(&mut text, name, &times);
        }
        line(&mut text, "wall", &self.walls());
        text
    }
}

fn line(text: &mut String, name: &str, times: &[f64]) {
    let (median, min, max) = spread(times);
    let _ = writeln!(text, "  {name:<18} {median:>9.1} {min:>9.1} {max:>9.1}");
}

/// Ratios of paired runs, with the median and the spread.
pub(crate) fn ratios(title: &str, ours: &[f64], theirs: &[f64]) -> String {
    let pairs: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    let (median, min, max) = spread(&pairs);
    format!(
        "{title}: median {median:.3}, min {min:.3}, max {max:.3} over {} pairs",
        pairs.len()
    )
}

/// A line that says whether a goal is met.
pub(crate) fn goal(what: &str, met: bool) -> String {
    let verdict = if met { "met" } else { "NOT MET" };
    format!("goal: {what}: {verdict}")
}

/// What a network costs: the whole of it outside of the kernel's boot, which
/// is the same and differs most from run to run, and the time of its driver.
pub(crate) fn network_cost(with: &Series, without: &Series) -> String {
    let outside = |run: &Run| run.wall.as_secs_f64() * 1000.0 - run.stage("boot_kernel");
    let pairs = with.runs.iter().zip(&without.runs);
    let extra: Vec<f64> = pairs.map(|(a, b)| outside(a) - outside(b)).collect();
    let driver: Vec<f64> = with
        .runs
        .iter()
        .map(|run| run.stage("guest_nic_driver"))
        .collect();
    let ((extra, min, max), driver) = (spread(&extra), spread(&driver).0);
    format!(
        "a network, outside of the kernel's boot: median {extra:.1} ms more, min {min:.1}, \
         max {max:.1}; its driver loads in {driver:.1} ms beside the disks"
    )
}

/// A line with the medians of both and of the ratios of pairs.
pub(crate) fn pairs(title: &str, ours: &[f64], theirs: &[f64]) -> String {
    let each: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
    let (ratio, min, max) = spread(&each);
    let (ours, theirs) = (spread(ours).0, spread(theirs).0);
    format!("  {title:<34} {ours:>9.3} {theirs:>9.3} {ratio:>7.2} {min:>7.2} {max:>7.2}")
}

/// The median of ratios of paired runs.
pub(crate) fn median_ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    let each: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
    spread(&each).0
}

/// Median, minimum and maximum.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = match sorted.len() {
        0 => return (0.0, 0.0, 0.0),
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    };
    (median, sorted[0], sorted[sorted.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_series_lies_between_its_middle_values() {
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]), (2.5, 1.0, 4.0));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
    }
}
