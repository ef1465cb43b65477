//! Which build this is.

/// Version of the workspace.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit, `unknown` outside git.
pub(crate) const COMMIT: &str = env!("BANGER_COMMIT");
/// What `--version` says after the program's name.
pub(crate) const LONG: &str = concat!(
    "v",
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("BANGER_COMMIT"),
    ", built ",
    env!("BANGER_BUILT_AT"),
    ")"
);
/// Header of every request, with [`id`].
pub(crate) const HEADER: &str = "banger-client";

/// The build as programs compare it.
pub(crate) fn id() -> String {
    format!("{VERSION}+{COMMIT}")
}

/// Whether another program is of this build. A commit that either side does
/// not know says nothing.
pub(crate) fn same(version: Option<&str>, commit: Option<&str>) -> bool {
    let unknown = |commit: &str| commit.is_empty() || commit == "unknown";
    version.is_none_or(|version| version.trim_start_matches('v') == VERSION)
        && commit.is_none_or(|commit| unknown(commit) || unknown(COMMIT) || commit == COMMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_differ_by_version_or_by_a_commit_both_know() {
        assert!(same(Some(VERSION), Some(COMMIT)));
        assert!(same(Some(VERSION), Some("unknown")));
        assert!(same(None, None));
        assert!(!same(Some("9.9.9"), Some(COMMIT)));
        assert_eq!(
            same(Some(VERSION), Some("0123456789ab")),
            COMMIT == "unknown"
        );
    }
}
