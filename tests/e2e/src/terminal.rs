//! A real terminal: tmux, with a shell in it that a test types into.

use std::path::PathBuf;
use std::time::Duration;

use crate::done::Done;
use crate::house::House;
use crate::run::Call;
use crate::wait;

/// A terminal window with a shell whose prompt is `host$ `. Closed when dropped.
pub struct Terminal<'a> {
    house: &'a House,
    socket: PathBuf,
}

impl<'a> Terminal<'a> {
    /// Opens a window of this size in the house.
    ///
    /// # Panics
    /// When tmux does not start.
    #[must_use]
    pub fn open(house: &'a House, columns: u16, rows: u16) -> Self {
        let socket = house.dir().join("tmux");
        let this = Self { house, socket };
        let path = format!(
            "{}:{}",
            house.programs().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let (x, y) = (columns.to_string(), rows.to_string());
        let settings = house.dir().join("tmux.conf");
        std::fs::write(&settings, "set -g default-terminal screen-256color\n")
            .expect("an own file");
        house.give(&settings);
        let shell = "env PS1='host$ ' ENV= sh -i";
        let start = ["new-session", "-d", "-x", &x, "-y", &y, shell];
        let files = [
            "-S".as_ref(),
            this.socket.as_os_str(),
            "-f".as_ref(),
            settings.as_os_str(),
        ];
        let args = files.into_iter().chain(start.iter().map(AsRef::as_ref));
        let _ = house
            .wrap(Call::new("tmux", args))
            .env("PATH", path)
            .env("TERM", "xterm")
            .run()
            .ok();
        // Not in the file: tmux 3.3 dies of it before there is a window.
        this.tmux(&["set-option", "-g", "window-size", "manual"]);
        this.wait_for("host$", Duration::from_secs(20));
        this
    }

    fn tmux(&self, args: &[&str]) -> Done {
        Call::new(
            "tmux",
            ["-S".as_ref(), self.socket.as_os_str()]
                .into_iter()
                .chain(args.iter().map(AsRef::as_ref)),
        )
        .run()
        .ok()
    }

    /// What the window shows.
    #[must_use]
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).out()
    }

    /// Types text as it is.
    pub fn keys(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]);
    }

    /// Presses a key by its tmux name (`Enter`, `Escape`, `C-c`).
    pub fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Types a line.
    pub fn line(&self, text: &str) {
        self.keys(text);
        self.press("Enter");
    }

    /// Empties the window and its history.
    pub fn clear(&self) {
        self.tmux(&["send-keys", "-R"]);
        self.tmux(&["clear-history"]);
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.tmux(&[
            "resize-window",
            "-x",
            &columns.to_string(),
            "-y",
            &rows.to_string(),
        ]);
    }

    /// Waits until the window shows the text, and returns all it shows.
    ///
    /// # Panics
    /// When it does not appear in time.
    #[track_caller]
    pub fn wait_for(&self, text: &str, deadline: Duration) -> String {
        let mut last = String::new();
        wait::eventually(deadline, || {
            last = self.screen();
            last.contains(text).then(|| last.clone())
        })
        .unwrap_or_else(|| panic!("the terminal never showed {text:?}; it shows\n{last}"))
    }

    /// Waits until the window no longer shows the text.
    ///
    /// # Panics
    /// When it stays.
    #[track_caller]
    pub fn wait_gone(&self, text: &str, deadline: Duration) {
        wait::until_true(&format!("{text:?} leaves the terminal"), deadline, || {
            !self.screen().contains(text)
        });
    }

    /// The house it stands in.
    #[must_use]
    pub fn house(&self) -> &House {
        self.house
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = Call::new(
            "tmux",
            [
                "-S".as_ref(),
                self.socket.as_os_str(),
                "kill-server".as_ref(),
            ],
        )
        .run();
    }
}
