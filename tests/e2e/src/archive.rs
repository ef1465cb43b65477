//! Layers of images written byte by byte, so that they can be wrong.

use std::io::Write as _;

/// An entry of a tar file.
#[derive(Debug, Clone)]
pub struct Entry {
    path: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    data: Vec<u8>,
    declared: Option<u64>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// A regular file.
    #[must_use]
    pub fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self {
            data: data.as_ref().to_vec(),
            ..Self::of(path, b'0')
        }
    }

    /// An entry of the kind that this letter means in a header.
    #[must_use]
    pub fn of(path: impl AsRef<[u8]>, kind: u8) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            data: Vec::new(),
            declared: None,
            records: Vec::new(),
        }
    }

    /// A symbolic link, or with `hard` another name.
    #[must_use]
    pub fn link(path: impl AsRef<[u8]>, to: impl AsRef<[u8]>, hard: bool) -> Self {
        Self {
            link: to.as_ref().to_vec(),
            ..Self::of(path, if hard { b'1' } else { b'2' })
        }
    }

    /// Says another size than it has.
    #[must_use]
    pub fn declare(mut self, bytes: u64) -> Self {
        self.declared = Some(bytes);
        self
    }

    /// Adds a PAX record.
    #[must_use]
    pub fn record(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let record = (name.as_ref().to_vec(), value.as_ref().to_vec());
        self.records.push(record);
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        if !self.records.is_empty() {
            let data = self.records.iter().flat_map(|(name, value)| {
                let rest = name.len() + value.len() + 3;
                // The number counts itself.
                let length = (1..20)
                    .map(|digits| rest + digits)
                    .find(|length| rest + length.to_string().len() == *length)
                    .expect("some number is long enough");
                let head = format!("{length} ").into_bytes();
                [&head[..], name, b"=", value, b"\n"].concat()
            });
            Self::file("pax", data.collect::<Vec<_>>())
                .kind(b'x')
                .write(out);
        }
        let size = self.declared.unwrap_or(self.data.len() as u64);
        out.extend(header(&self.path, self.kind, size, &self.link));
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }

    fn kind(mut self, kind: u8) -> Self {
        self.kind = kind;
        self
    }
}

/// A tar file of these entries.
#[must_use]
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.write(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A header as POSIX has it, of root's, from 2022. What does not fit is cut.
#[must_use]
pub fn header(path: &[u8], kind: u8, size: u64, link: &[u8]) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, room: usize, bytes: &[u8]| {
        let length = bytes.len().min(room);
        header[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, 100, path);
    put(100, 8, if kind == b'5' { b"0000755" } else { b"0000644" });
    put(108, 8, b"0000000");
    put(116, 8, b"0000000");
    if size < 1 << 33 {
        put(124, 12, format!("{size:011o}").as_bytes());
    } else {
        // As GNU tar has it: a bit, and the number itself.
        put(124, 1, &[0x80]);
        put(128, 8, &size.to_be_bytes());
    }
    put(136, 12, b"14257616000");
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, link);
    put(257, 8, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

/// Packs bytes with gzip, as quickly as can be.
///
/// # Panics
/// Never: memory takes all.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("memory takes all");
    out.finish().expect("memory takes all")
}
