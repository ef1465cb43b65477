//! From the kernel file a distribution ships to the ELF that boots.
//!
//! Owns the x86 boot header and the unpackers a kernel may be packed with. Takes a plain ELF as
//! it is. Bounded: the file may come from anywhere. Building nothing, it only takes out.

use std::io::{self, Read};

use crate::codec::{Bounded, Codec, unpack};

/// The largest kernel, unpacked.
const UNPACKED_LIMIT: u64 = 512 << 20;
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What one block of the legacy format unpacks to, at most.
const LZ4_BLOCK: usize = 8 << 20;

/// A kernel file could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// It is neither ELF nor bzImage.
    #[error("not a kernel: neither an ELF file nor a bzImage")]
    NotAKernel,
    /// Its header contradicts itself.
    #[error("the kernel file is damaged: {0}")]
    Damaged(&'static str),
    /// It is packed with something else.
    #[error("the kernel is packed with {0}, which is not supported")]
    Packing(&'static str),
    /// Unpacking failed.
    #[error("cannot unpack the kernel")]
    Unpack(#[source] io::Error),
}

/// How a kernel file came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Format {
    /// Packed, with the x86 boot header.
    #[serde(rename = "bzImage")]
    BzImage,
    /// Plain ELF.
    #[serde(rename = "vmlinux")]
    Vmlinux,
}

/// A kernel, unpacked.
#[derive(Debug)]
pub struct Kernel {
    /// How it came.
    pub format: Format,
    /// The ELF file.
    pub vmlinux: Vec<u8>,
    /// What `uname -r` will say.
    pub version: Option<String>,
}

/// Unpacks a kernel file.
///
/// # Errors
/// See [`BzImageError`].
pub fn unpack_kernel(file: &[u8]) -> Result<Kernel, BzImageError> {
    if is_elf(file) {
        return Ok(Kernel {
            format: Format::Vmlinux,
            version: banner(file),
            vmlinux: file.to_vec(),
        });
    }
    let payload = payload(file)?;
    let vmlinux = unpack_payload(payload)?;
    if !is_elf(&vmlinux) {
        return Err(BzImageError::Damaged("what it unpacks to is no ELF file"));
    }
    Ok(Kernel {
        format: Format::BzImage,
        version: header_version(file).or_else(|| banner(&vmlinux)),
        vmlinux,
    })
}

fn is_elf(bytes: &[u8]) -> bool {
    // 64 bit, little-endian.
    bytes.starts_with(b"\x7fELF\x02\x01")
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The packed kernel inside a bzImage, by the boot protocol's header (2.08 and later).
fn payload(file: &[u8]) -> Result<&[u8], BzImageError> {
    if file.get(0x202..0x206) != Some(b"HdrS".as_slice()) {
        return Err(BzImageError::NotAKernel);
    }
    if u16_at(file, 0x206) < Some(0x208) {
        return Err(BzImageError::Damaged("its boot protocol is too old"));
    }
    let setup_sectors = match file.get(0x1f1) {
        Some(0) | None => 4,
        Some(count) => usize::from(*count),
    };
    let cut = BzImageError::Damaged("its payload lies outside of the file");
    let (Some(offset), Some(length)) = (u32_at(file, 0x248), u32_at(file, 0x24c)) else {
        return Err(cut);
    };
    let start = (setup_sectors + 1) * 512 + offset as usize;
    start
        .checked_add(length as usize)
        .and_then(|end| file.get(start..end))
        .ok_or(cut)
}

fn unpack_payload(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    if payload.starts_with(&LZ4_LEGACY) {
        return unpack_lz4(payload);
    }
    for (magic, name) in [
        (&b"BZh"[..], "bzip2"),
        (&[0x5d, 0, 0], "lzma"),
        (&[0x89, b'L', b'Z', b'O'], "lzo"),
    ] {
        if payload.starts_with(magic) {
            return Err(BzImageError::Packing(name));
        }
    }
    // The build appends the unpacked size, four bytes that are no part of the stream.
    let (stream, size) = match payload.len().checked_sub(4) {
        Some(at) if Codec::of(payload) != Codec::Plain => (&payload[..at], u32_at(payload, at)),
        _ if is_elf(payload) => return Ok(payload.to_vec()),
        _ => return Err(BzImageError::Packing("an unknown method")),
    };
    // gzip carries its size at its own end: there the build appends nothing.
    let stream = if Codec::of(payload) == Codec::Gzip {
        payload
    } else {
        stream
    };
    let expected = size.map_or(0, |size| (size as usize).min(128 << 20));
    let mut out = Vec::with_capacity(expected);
    unpack(stream)
        .and_then(|unpacked| Bounded::new(unpacked, UNPACKED_LIMIT).read_to_end(&mut out))
        .map_err(BzImageError::Unpack)?;
    Ok(out)
}

/// The legacy format: a magic number, then blocks of (packed size, packed bytes).
fn unpack_lz4(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    let mut at = LZ4_LEGACY.len();
    while let Some(size) = u32_at(payload, at) {
        let size = size as usize;
        let start = at + 4;
        let Some(packed) = start
            .checked_add(size)
            .and_then(|end| payload.get(start..end))
        else {
            // The four bytes at the end are the unpacked size, not a block.
            if start == payload.len() && size == out.len() {
                break;
            }
            return Err(BzImageError::Damaged("a block is cut off"));
        };
        let written = lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| {
            BzImageError::Unpack(io::Error::new(io::ErrorKind::InvalidData, error))
        })?;
        if written == 0 || out.len() + written > UNPACKED_LIMIT as usize {
            return Err(BzImageError::Damaged("its blocks do not fit"));
        }
        out.extend_from_slice(&block[..written]);
        at = start + size;
    }
    Ok(out)
}

/// The version in the boot header: the first word of a text.
fn header_version(file: &[u8]) -> Option<String> {
    let at = usize::from(u16_at(file, 0x20e).filter(|at| *at != 0)?) + 0x200;
    version_word(file.get(at..)?)
}

/// The version in the kernel's own banner.
fn banner(vmlinux: &[u8]) -> Option<String> {
    const LEAD: &[u8] = b"Linux version ";
    memchr::memmem::find_iter(vmlinux, LEAD)
        .find_map(|at| version_word(&vmlinux[at + LEAD.len()..]))
}

/// `6.1.0-56-cloud-amd64`: digits first, and only what a version may have.
fn version_word(text: &[u8]) -> Option<String> {
    let length = text
        .iter()
        .take(128)
        .position(|byte| !(byte.is_ascii_alphanumeric() || b".-_+~".contains(byte)))?;
    let word = std::str::from_utf8(&text[..length]).ok()?;
    let fits = word.starts_with(|c: char| c.is_ascii_digit())
        && word.contains('.')
        && !word.contains("..");
    fits.then(|| word.to_owned())
}

/// The configuration a kernel may carry in itself, unpacked.
#[must_use]
pub fn embedded_config(vmlinux: &[u8]) -> Option<String> {
    const START: &[u8] = b"IKCFG_ST";
    const END: &[u8] = b"IKCFG_ED";
    let start = memchr::memmem::find(vmlinux, START)? + START.len();
    let end = start + memchr::memmem::find(&vmlinux[start..], END)?;
    let bytes = crate::codec::unpack_bytes(&vmlinux[start..end], 4 << 20).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01\0".to_vec();
        elf.resize(100_000, 7);
        elf.extend_from_slice(b"Linux version 6.7.8-test+1 (somebody) #1\0");
        elf
    }

    fn bzimage(packed: &[u8], with_size: bool) -> Vec<u8> {
        let mut file = vec![0; 0x400 + 512];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let text = b"6.7.8-head (x)\0";
        file[0x300..0x300 + text.len()].copy_from_slice(text);
        let mut payload = packed.to_vec();
        if with_size {
            payload.extend(u32::try_from(elf().len()).unwrap().to_le_bytes());
        }
        file[0x248..0x24c].copy_from_slice(&512u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        file.extend(payload);
        file
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut out = LZ4_LEGACY.to_vec();
        for block in data.chunks(60_000) {
            let packed = lz4_flex::block::compress(block);
            out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            out.extend(packed);
        }
        out
    }

    fn packings() -> Vec<(&'static str, Vec<u8>)> {
        let elf = elf();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        gzip.write_all(&elf).unwrap();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(elf.as_slice(), 1)
            .read_to_end(&mut xz)
            .unwrap();
        vec![
            ("lz4", bzimage(&lz4(&elf), true)),
            (
                "zstd",
                bzimage(&zstd::stream::encode_all(elf.as_slice(), 1).unwrap(), true),
            ),
            ("xz", bzimage(&xz, true)),
            ("gzip", bzimage(&gzip.finish().unwrap(), false)),
        ]
    }

    #[test]
    fn every_packing_gives_back_the_elf_and_the_version() {
        for (name, file) in packings() {
            let kernel = unpack_kernel(&file).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert!(kernel.vmlinux == elf(), "{name}");
            assert_eq!(kernel.version.as_deref(), Some("6.7.8-head"), "{name}");
            assert_eq!(kernel.format, Format::BzImage);
        }
        let plain = unpack_kernel(&elf()).unwrap();
        assert_eq!(plain.version.as_deref(), Some("6.7.8-test+1"));
        assert_eq!(plain.format, Format::Vmlinux);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        for (name, file) in packings() {
            for cut in [
                0,
                0x1f2,
                0x205,
                0x250,
                0x600,
                file.len() - 9,
                file.len() - 1,
            ] {
                assert!(unpack_kernel(&file[..cut]).is_err(), "{name} cut at {cut}");
            }
            for at in [0x1f1, 0x248, 0x24b, 0x24e, 0x600, 0x620] {
                let mut bad = file.clone();
                bad[at] ^= 0xff;
                // Some of these still unpack; none may panic or give something else.
                if let Ok(kernel) = unpack_kernel(&bad) {
                    assert!(is_elf(&kernel.vmlinux), "{name} changed at {at:#x}");
                }
            }
        }
        assert!(matches!(
            unpack_kernel(b"MZ no"),
            Err(BzImageError::NotAKernel)
        ));
        let bzip2 = bzimage(b"BZh91AY&SY", true);
        assert!(matches!(
            unpack_kernel(&bzip2),
            Err(BzImageError::Packing("bzip2"))
        ));
    }
}
