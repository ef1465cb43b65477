//! A kernel file from anywhere, and a module.
#![no_main]

use banger_images::{bzimage, modules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(kernel) = bzimage::unpack_kernel(data) {
        assert!(kernel.vmlinux.starts_with(b"\x7fELF"));
        let _ = bzimage::embedded_config(&kernel.vmlinux);
    }
    if modules::modinfo(data).is_ok()
        && let Ok(lean) = modules::strip(data)
    {
        // What was written must be readable again.
        modules::modinfo(&lean).expect("a stripped module is a module");
    }
});
