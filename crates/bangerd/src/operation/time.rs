//! The wall clock, as records show it.

/// Now: RFC 3339, UTC, whole seconds.
pub(crate) fn now() -> String {
    jiff::Timestamp::from_second(now_seconds())
        .expect("the present is a time")
        .to_string()
}

/// Now, seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    jiff::Timestamp::now().as_second()
}
