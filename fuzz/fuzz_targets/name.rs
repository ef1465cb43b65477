//! A name never leads out of its directory, whatever it holds.
#![no_main]

use banger_model::{ImageName, KernelName, VmName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let names = [
        VmName::parse(text).map(|name| name.to_string()),
        ImageName::parse(text).map(|name| name.to_string()),
        KernelName::parse(text).map(|name| name.to_string()),
    ];
    for name in names.into_iter().flatten() {
        assert_eq!(name, text);
        assert!(!name.contains('/') && name != "." && name != ".." && name.is_ascii());
        assert!((1..=128).contains(&name.len()));
    }
});
