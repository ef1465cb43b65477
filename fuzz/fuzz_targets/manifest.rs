//! Documents of a registry or layout, of any bytes: manifest, index, config. What is taken for
//! an image keeps to the limits.
#![no_main]

use banger_images::oci::Config;
use banger_registry::{Platform, fuzzing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for (architecture, variant) in [("amd64", None), ("arm64", Some("v8".to_owned()))] {
        let platform = Platform {
            architecture: architecture.to_owned(),
            variant,
        };
        fuzzing::documents(data, &platform);
    }
    if let Ok(config) = Config::parse(data) {
        assert!(config.env.iter().all(|pair| pair.contains('=') && !pair.contains('\0')));
        assert!(config.working_dir.is_empty() || config.working_dir.starts_with('/'));
    }
});
