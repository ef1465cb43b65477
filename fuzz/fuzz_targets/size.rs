//! A size that a user typed: what is printed reads as the same again.
#![no_main]

use banger_model::Size;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(size) = Size::parse(text) {
        assert_eq!(Size::parse(&size.to_string()).ok(), Some(size));
    }
});
