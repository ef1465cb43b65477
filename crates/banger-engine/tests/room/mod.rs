//! A place to launch a real QEMU in: directories, disks, and a guest of a few
//! instructions, so that nothing but QEMU itself is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use banger_engine::kvm::KvmSetting;
use banger_engine::machine::{Drive, Machine, Transport};
use banger_engine::{AnyEngine, Settings, Wish};

/// What the guest does after it greeted on the console.
#[derive(Clone, Copy)]
pub(crate) enum Guest {
    /// Sleeps for ever.
    Sleeps,
    /// Resets the machine.
    Resets,
}

/// One VM's files. Tests of all programs that use rooms take turns.
pub(crate) struct Room {
    pub(crate) root: PathBuf,
    pub(crate) machine: Machine,
    _turn: fs::File,
}

impl Room {
    /// `None`, with the reason printed, where there is no QEMU.
    pub(crate) fn new(name: &str, guest: Guest) -> Option<Self> {
        let turn = fs::File::create(std::env::temp_dir().join(format!(
            "banger-engine-{}.turn",
            rustix::process::geteuid().as_raw()
        )))
        .unwrap();
        rustix::fs::flock(&turn, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let root = std::env::temp_dir().join(format!("banger-room-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let run_dir = root.join("run");
        fs::create_dir_all(&run_dir).unwrap();
        fs::create_dir_all(root.join("cache")).unwrap();
        fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o700)).unwrap();
        for (name, bytes) in [("kernel", kernel(guest)), ("initramfs", vec![0; 512])] {
            fs::write(root.join(name), bytes).unwrap();
        }
        for name in ["root.img", "work,1.img"] {
            fs::write(root.join(name), vec![0; 1 << 20]).unwrap();
        }
        let machine = plain_machine(&root);
        let room = Self {
            root,
            machine,
            _turn: turn,
        };
        if let Err(error) = room.engine().choose(Wish::Auto) {
            println!("skipped: {error}");
            return None;
        }
        Some(room)
    }

    /// Another daemon on the same host.
    pub(crate) fn engine(&self) -> AnyEngine {
        engine(&self.root)
    }
}

/// The machine of a room.
pub(crate) fn plain_machine(root: &Path) -> Machine {
    let drive = |serial: &str, file: &str, read_only| Drive {
        serial: serial.into(),
        path: root.join(file),
        read_only,
    };
    Machine {
        id: format!("{:064x}", std::process::id()),
        vcpus: 1,
        memory_mib: 128,
        kernel: root.join("kernel"),
        initramfs: root.join("initramfs"),
        transport: Transport::Mmio,
        arguments: Vec::new(),
        drives: vec![
            drive("root", "root.img", true),
            drive("work", "work,1.img", false),
        ],
        nic: None,
        console: root.join("console.log"),
        run_dir: root.join("run"),
        cgroup: None,
    }
}

/// The engines of a daemon that keeps its files in this room.
pub(crate) fn engine(root: &Path) -> AnyEngine {
    AnyEngine::new(Settings {
        wish: Wish::Auto,
        qemu_bin: None,
        kvm: KvmSetting::Off,
        cache_dir: root.join("cache"),
    })
}

impl Drop for Room {
    fn drop(&mut self) {
        // A test that failed leaves an engine; the files below are its last.
        let (root, machine) = (self.root.clone(), self.machine.clone());
        let sweep = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.map(|runtime| {
                runtime.block_on(engine(&root).sweep(&machine.id, &machine.run_dir, None))
            })
        });
        let _ = sweep.join();
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// An ELF that QEMU enters in 32-bit mode at 1 MiB, as it does Linux.
fn kernel(guest: Guest) -> Vec<u8> {
    const AT: u32 = 0x10_0000;
    const CODE_FROM: usize = 0x1000;
    // mov dx, 0x3f8; then "hi\n" by out dx, al
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in *b"hi\n" {
        code.extend([0xb0, byte, 0xee]);
    }
    match guest {
        // cli; hlt; jmp to the cli
        Guest::Sleeps => code.extend([0xfa, 0xf4, 0xeb, 0xfc]),
        // An empty interrupt table and an interrupt: a triple fault.
        Guest::Resets => {
            let table = AT + u32::try_from(code.len()).unwrap() + 8;
            code.extend([0x0f, 0x01, 0x1d]);
            code.extend(table.to_le_bytes());
            code.extend([0xcc, 0, 0, 0, 0, 0, 0]);
        }
    }
    let mut note = Vec::new();
    for word in [4u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(u64::from(AT).to_le_bytes());

    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, values: &[u16]| {
        values
            .iter()
            .for_each(|value| elf.extend(value.to_le_bytes()))
    };
    let word = |elf: &mut Vec<u8>, values: &[u64]| {
        values
            .iter()
            .for_each(|value| elf.extend(value.to_le_bytes()))
    };
    half(&mut elf, &[2, 62]);
    elf.extend(1u32.to_le_bytes());
    word(&mut elf, &[u64::from(AT), 64, 0]);
    elf.extend(0u32.to_le_bytes());
    half(&mut elf, &[64, 56, 2, 64, 0, 0]);
    let segment =
        |elf: &mut Vec<u8>, kind: u32, flags: u32, from: usize, at: u64, length: usize| {
            elf.extend(kind.to_le_bytes());
            elf.extend(flags.to_le_bytes());
            word(elf, &[from as u64, at, at, length as u64, length as u64, 4]);
        };
    segment(&mut elf, 1, 7, CODE_FROM, u64::from(AT), code.len());
    segment(&mut elf, 4, 4, 64 + 2 * 56, 0, note.len());
    elf.extend(&note);
    elf.resize(CODE_FROM, 0);
    elf.extend(&code);
    elf.resize(CODE_FROM + 0x1000, 0);
    elf
}
