//! A door for fuzz targets: documents that nobody sent.

use crate::document::{self, Document, Platform};
use crate::limits::Limits;
use crate::local::layout;
use crate::source::Source;

/// Reads bytes as every kind of document there is, for this platform.
///
/// # Panics
/// When what is taken for an image does not keep to the limits.
pub fn documents(bytes: &[u8], platform: &Platform) {
    let limits = Limits {
        layers: 8,
        image: 1 << 40,
        ..Limits::default()
    };
    if let Ok(Document::Image(image)) = document::parse(bytes, "x", platform, &limits) {
        assert!((1..=limits.layers).contains(&image.layers.len()));
        let sizes = image.layers.iter().map(|layer| layer.size);
        let total = sizes.fold(image.config.size, u64::saturating_add);
        assert!(total <= limits.image && image.config.size <= limits.document);
    }
    let _ = document::check_config(bytes, "x", platform);
    for spelled in ["oci-layout:/x", "oci-layout:/x:1", "oci-layout:/x:a/b:1"] {
        if let Ok(Source::Local(local)) = spelled.parse() {
            let _ = layout::choose(bytes, &local, platform);
        }
    }
    // And as what a person types.
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(source) = text.parse::<Source>()
    {
        let again = source.to_string().parse::<Source>();
        assert_eq!(again.expect("its own spelling"), source);
    }
}
