//! `doctor`: look for what is missing. Changes nothing and starts no daemon:
//! where none runs, its program looks by itself.

use std::process::{Command, Stdio};

use banger_api::Empty;
use banger_api::endpoint::{Doctor as DoctorEndpoint, Ping};
use banger_api::error::Code;
use banger_api::system::{DoctorReport, DoctorRow, DoctorStatus};
use clap::Args;

use crate::client::At;
use crate::client::start::{self, Place};
use crate::failure::Failure;
use crate::show::{Style, escape, paint_stdout};
use crate::version;

/// Look for what is missing on this host; exit 5 where something is
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print the API's answer
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Looks.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let (mut report, ping) = match place.look().await? {
            Some(client) => {
                let body = client
                    .body::<DoctorEndpoint>(At::default(), &Empty {})
                    .await?;
                let report: DoctorReport = super::read(&body)?;
                (report, Some(client.get::<Ping>(At::default()).await?))
            }
            None => (without_a_daemon(), None),
        };
        let mut details = vec![format!("banger {}", version::LONG)];
        let mut status = DoctorStatus::Pass;
        match ping {
            None => details.push("no bangerd runs".to_owned()),
            Some(ping) => {
                let (theirs, commit) = (ping.version.as_deref(), ping.commit.as_deref());
                details.push(format!(
                    "bangerd v{} (commit {})",
                    theirs.unwrap_or("?"),
                    commit.unwrap_or("?")
                ));
                if !version::same(theirs, commit) {
                    status = DoctorStatus::Warn;
                    details.push("two builds: banger daemon restart".to_owned());
                }
            }
        }
        // The daemon knows only itself, so this row is ours.
        report.rows.retain(|row| row.title != "version");
        let place = report
            .rows
            .iter()
            .position(|row| row.title != "architecture")
            .unwrap_or(0);
        report.rows.insert(
            place,
            DoctorRow {
                status,
                title: "version".to_owned(),
                details,
            },
        );
        self.print(&report)
    }

    fn print(&self, report: &DoctorReport) -> Result<u8, Failure> {
        if self.json {
            let text = serde_json::to_string(report).expect("findings are plain JSON");
            crate::show::line(&text)?;
        } else {
            for row in &report.rows {
                let (word, style) = match row.status {
                    DoctorStatus::Pass => ("PASS", Style::Good),
                    DoctorStatus::Warn => ("WARN", Style::Busy),
                    DoctorStatus::Fail => ("FAIL", Style::Bad),
                };
                crate::show::line(&format!(
                    "{} {}",
                    paint_stdout(style, word),
                    escape(&row.title)
                ))?;
                for detail in &row.details {
                    crate::show::line(&format!("- {}", escape(detail)))?;
                }
            }
        }
        let failed = report
            .rows
            .iter()
            .any(|row| row.status == DoctorStatus::Fail);
        Ok(if failed { Code::NoTool.exit() } else { 0 })
    }
}

/// What the daemon's program finds without becoming a daemon.
fn without_a_daemon() -> DoctorReport {
    let program = start::program();
    let output = Command::new(&program)
        .arg("--doctor-json")
        .stdin(Stdio::null())
        .output();
    let why = match output {
        Ok(output) => match serde_json::from_slice(&output.stdout) {
            Ok(report) => return report,
            Err(_) => {
                let words = String::from_utf8_lossy(&output.stderr);
                format!(
                    "{} --doctor-json: {}, {}",
                    program.display(),
                    output.status,
                    words.trim()
                )
            }
        },
        Err(error) => format!("cannot run {}: {error}", program.display()),
    };
    let row = DoctorRow {
        status: DoctorStatus::Fail,
        title: "daemon".to_owned(),
        details: vec![why],
    };
    DoctorReport { rows: vec![row] }
}
