//! Kernel modules as files: what they say of themselves, and a leaner form for booting.
//!
//! Owns reading `.modinfo`, and taking signature, type and debugging information out: checking
//! and registering those costs more at boot than loading the rest. Decides nothing about which
//! modules are wanted.

use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{Endianness, elf};

/// A module could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// It is no module.
    #[error("not a kernel module")]
    NotAModule,
    /// Its ELF structure is damaged.
    #[error("the module is damaged")]
    Elf(#[from] object::read::Error),
    /// It could not be written again.
    #[error("cannot strip the module")]
    Build(#[from] object::build::Error),
}

/// What a module says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// Modules whose symbols it uses, names with underscores.
    pub depends: Vec<String>,
    /// What it wants loaded before, by name or alias.
    pub soft_before: Vec<String>,
    /// Aliases it answers to.
    pub aliases: Vec<String>,
}

/// A module's name from its file name, or `None` when it is no module's: dashes and
/// underscores are the same, and packed modules carry one more ending.
#[must_use]
pub fn name_of_file(file: &str) -> Option<String> {
    let stem = ["", ".xz", ".zst", ".gz"]
        .iter()
        .find_map(|packing| file.strip_suffix(packing)?.strip_suffix(".ko"))?;
    let fits = !stem.is_empty()
        && stem
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte));
    fits.then(|| stem.replace('-', "_"))
}

/// Reads `.modinfo`.
///
/// # Errors
/// When the file is no module.
pub fn modinfo(module: &[u8]) -> Result<ModInfo, ModuleError> {
    let header = elf::FileHeader64::<Endianness>::parse(module)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, module)?;
    let (_, section) = sections
        .section_by_name(endian, b".modinfo")
        .ok_or(ModuleError::NotAModule)?;
    let mut info = ModInfo::default();
    for record in section.data(endian, module)?.split(|byte| *byte == 0) {
        let Ok(record) = std::str::from_utf8(record) else {
            continue;
        };
        match record.split_once('=') {
            Some(("depends", value)) => info.depends.extend(
                value
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(|name| name.replace('-', "_")),
            ),
            Some(("softdep", value)) => {
                let mut before = false;
                for word in value.split_whitespace() {
                    match word {
                        "pre:" => before = true,
                        "post:" => before = false,
                        _ if before => info.soft_before.push(word.to_owned()),
                        _ => {}
                    }
                }
            }
            Some(("alias", value)) => info.aliases.push(value.to_owned()),
            _ => {}
        }
    }
    Ok(info)
}

/// The module without signature, BTF and debugging sections; it loads the same.
///
/// # Errors
/// When the file is no module, or of a shape that cannot be written again.
pub fn strip(module: &[u8]) -> Result<Vec<u8>, ModuleError> {
    // What follows the ELF structure, the signature, is left behind by reading and writing it.
    let mut builder = object::build::elf::Builder::read64(module)?;
    for section in &mut builder.sections {
        // None is 0 or 1; what is no power of two, or beyond any page, is damage.
        section.sh_addralign = section.sh_addralign.max(1);
        if !section.sh_addralign.is_power_of_two()
            || section.sh_addralign > SLACK
            || (section.is_alloc() && section.sh_offset > module.len() as u64)
        {
            return Err(ModuleError::NotAModule);
        }
        let name: &[u8] = section.name.as_slice();
        let is_debug = name.starts_with(b".debug") || name.starts_with(b".rela.debug");
        // BTF is loaded, though nothing refers to it; the others are never.
        let is_btf = name == b".BTF" || name == b".rela.BTF" || name.starts_with(b".BTF.");
        section.delete = is_btf || (is_debug && !section.sh_flags.contains(elf::SHF_ALLOC));
    }
    builder.delete_orphans();
    let mut out = Lean {
        bytes: Vec::new(),
        limit: module.len() as u64 + SLACK,
    };
    builder.write(&mut out)?;
    Ok(out.bytes)
}

/// What aligning sections anew may add.
const SLACK: u64 = 64 << 10;

/// Takes no more than a lean module can have: offsets of a damaged one ask for anything.
struct Lean {
    bytes: Vec<u8>,
    limit: u64,
}

impl object::write::WritableBuffer for Lean {
    fn reserve(&mut self, size: u64) -> Result<(), ()> {
        if size > self.limit {
            return Err(());
        }
        self.bytes.reserve(usize::try_from(size).map_err(drop)?);
        Ok(())
    }

    fn write_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_become_names_of_modules() {
        assert_eq!(name_of_file("virtio-rng.ko"), Some("virtio_rng".to_owned()));
        assert_eq!(name_of_file("overlay.ko.xz"), Some("overlay".to_owned()));
        assert_eq!(name_of_file("overlay.ko.zst"), Some("overlay".to_owned()));
        for no in ["modules.dep", ".ko", "x.ko.bz2", "a b.ko", "a/b.ko"] {
            assert_eq!(name_of_file(no), None, "{no}");
        }
    }

    #[test]
    fn a_module_that_would_grow_without_end_is_refused() {
        // One allocated section, placed far beyond the end of the file.
        let mut builder = object::build::elf::Builder::new(Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        let section = builder.sections.add();
        section.name = b".shstrtab"[..].into();
        section.sh_type = elf::SHT_STRTAB;
        section.sh_addralign = 1;
        section.data = object::build::elf::SectionData::SectionString;
        let section = builder.sections.add();
        section.name = b".text"[..].into();
        section.sh_type = elf::SHT_PROGBITS;
        section.sh_flags = elf::SHF_ALLOC;
        section.sh_offset = 4096;
        section.sh_addralign = 16;
        section.data = object::build::elf::SectionData::Data(vec![1; 16].into());
        builder.set_section_sizes();
        let mut module = Vec::new();
        builder.write(&mut module).unwrap();
        strip(&module).unwrap();
        // An empty section now, far beyond the end.
        let at = module
            .windows(8)
            .rposition(|bytes| bytes == 4096u64.to_le_bytes())
            .unwrap();
        module[at..at + 8].copy_from_slice(&(1u64 << 50).to_le_bytes());
        module[at + 8..at + 16].copy_from_slice(&0u64.to_le_bytes());
        assert!(strip(&module).is_err());
    }

    #[test]
    fn what_is_no_module_is_an_error() {
        assert!(modinfo(b"").is_err() && modinfo(&[0x7f; 500]).is_err());
        assert!(strip(b"\x7fELF").is_err());
    }
}
