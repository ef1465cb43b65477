//! QEMU's command line for a machine: a pure function of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use banger_wire::agent::PORT_NAME;

use crate::machine::{Acceleration, Machine, Nic, Transport};

/// Descriptor of the channel's listening socket in the engine.
pub(crate) const CHANNEL_FD: u32 = 3;
/// Descriptor of the control socket.
pub(crate) const CONTROL_FD: u32 = 4;
// 5 is the lock, which QEMU does not know of.
/// Descriptor of the network card's line, where there is one.
pub(crate) const LINE_FD: u32 = 6;

/// Option whose value names the VM, for finding a lost engine.
pub(crate) const NAME_OPTION: &str = "-name";

/// The value of [`NAME_OPTION`].
pub(crate) fn name(id: &str) -> String {
    format!("banger-{id}")
}

/// QEMU's name of the nth drive.
pub(crate) fn drive_name(index: usize) -> String {
    format!("disk{index}")
}

/// The number of the drive that QEMU calls so.
pub(crate) fn drive_index(name: &str) -> Option<usize> {
    name.strip_prefix("disk")?.parse().ok()
}

/// Arguments after the program. `tsc_khz` is the rate of the host's counter,
/// for an emulated guest.
pub(crate) fn arguments(
    machine: &Machine,
    acceleration: Acceleration,
    tsc_khz: Option<u64>,
) -> Vec<OsString> {
    let mut line = Line::default();
    let device = |kind: &str| match machine.transport {
        Transport::Mmio => format!("virtio-{kind}-device"),
        Transport::Pci => format!("virtio-{kind}-pci"),
    };
    line.pair(NAME_OPTION, name(&machine.id));
    line.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-nographic"] {
        line.word(flag);
    }
    line.pair(
        "-machine",
        if machine.transport == Transport::Pci {
            "microvm,pcie=on"
        } else {
            "microvm"
        },
    );
    match acceleration {
        Acceleration::Kvm => {
            line.pair("-accel", "kvm");
            line.pair("-cpu", "host");
        }
        Acceleration::Tcg => {
            line.pair("-accel", "tcg,thread=multi,tb-size=128");
            // Without `rep movsb`: the guest would choose it for every copy, and
            // it is emulated byte by byte (a copy takes twice as long).
            line.pair("-cpu", "max,-erms");
        }
    }
    line.pair("-smp", machine.vcpus.to_string());
    line.pair("-m", format!("{}M", machine.memory_mib));

    line.path(
        "-chardev",
        "file,id=console,path=",
        &machine.console,
        ",append=on",
    );
    line.pair("-serial", "chardev:console");
    line.pair(
        "-chardev",
        format!("socket,id=control,fd={CONTROL_FD},server=on,wait=off"),
    );
    line.pair("-mon", "chardev=control,mode=control");

    line.path("-kernel", "", &machine.kernel, "");
    line.path("-initrd", "", &machine.initramfs, "");
    line.pair("-append", kernel_line(machine, acceleration, tsc_khz));

    for (index, drive) in machine.drives.iter().enumerate() {
        let name = drive_name(index);
        let mode = if drive.read_only {
            ",readonly=on"
        } else {
            ",discard=unmap"
        };
        let head = format!("if=none,id={name},format=raw{mode},file=");
        line.path("-drive", &head, &drive.path, "");
        // Otherwise a full host disk would freeze the guest until somebody thaws
        // it: here the guest is told, and so are we.
        let errors = if drive.read_only {
            "rerror=report"
        } else {
            "rerror=report,werror=report"
        };
        line.pair(
            "-device",
            format!(
                "{},drive={name},serial={},{errors}",
                device("blk"),
                drive.serial
            ),
        );
    }
    line.pair("-device", device("rng"));
    line.pair(
        "-device",
        format!("{},free-page-reporting=on", device("balloon")),
    );
    line.pair(
        "-chardev",
        format!("socket,id=channel,fd={CHANNEL_FD},server=on,wait=off"),
    );
    line.pair("-device", device("serial"));
    line.pair(
        "-device",
        format!("virtserialport,chardev=channel,name={PORT_NAME}"),
    );
    if let Some(nic) = &machine.nic {
        line.pair(
            "-netdev",
            format!("dgram,id=n0,local.type=fd,local.str={LINE_FD}"),
        );
        line.pair("-device", card(nic, machine.transport, &device("net")));
    }
    line.0
}

fn card(nic: &Nic, transport: Transport, device: &str) -> String {
    let mac: Vec<String> = nic.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut card = format!(
        "{device},netdev=n0,mac={},host_mtu={}",
        mac.join(":"),
        nic.mtu
    );
    if transport == Transport::Pci {
        // Nothing boots from it, and its boot ROM comes in a package of its own.
        card.push_str(",romfile=");
    }
    card
}

/// The guest kernel's arguments: first those that this engine needs.
fn kernel_line(machine: &Machine, acceleration: Acceleration, tsc_khz: Option<u64>) -> String {
    // Reset by triple fault, which ends QEMU; a panic resets at once.
    let mut words = vec![
        "console=ttyS0".to_owned(),
        "quiet".into(),
        "reboot=t".into(),
        "panic=-1".into(),
    ];
    words.push("cryptomgr.notests".to_owned());
    if acceleration == Acceleration::Tcg
        && let Some(khz) = tsc_khz
    {
        words.push(format!("tsc_early_khz={khz}"));
        // The counter is the host's own. The kernel's watchdog would compare it
        // with emulated ticks, which a busy host loses, and fall back to them:
        // a clock that runs slow.
        words.push("tsc=reliable".to_owned());
    }
    words.extend(machine.arguments.iter().cloned());
    words.join(" ")
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn word(&mut self, word: impl Into<OsString>) {
        self.0.push(word.into());
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.word(option);
        self.word(value);
    }

    /// An option whose value holds a path. In a list a comma is doubled; a
    /// path that is the whole value is taken as it is.
    fn path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        let mut value = before.as_bytes().to_vec();
        for &byte in path.as_os_str().as_bytes() {
            value.push(byte);
            if byte == b',' && !before.is_empty() {
                value.push(b',');
            }
        }
        value.extend(OsStr::new(after).as_bytes());
        self.pair(option, OsString::from_vec(value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::machine::Drive;

    fn machine(transport: Transport) -> Machine {
        let drive = |serial: &str, read_only| Drive {
            serial: serial.to_owned(),
            path: format!("/vms/v/{serial}.ext4").into(),
            read_only,
        };
        Machine {
            id: "0123".repeat(16),
            vcpus: 2,
            memory_mib: 512,
            kernel: "/k/vmlinux".into(),
            initramfs: "/k/initramfs".into(),
            transport,
            arguments: vec!["banger.test=1".into()],
            drives: vec![
                drive("root", true),
                drive("overlay", false),
                drive("work", false),
                drive("modules", true),
            ],
            nic: None,
            run_dir: "/vms/v/run".into(),
            console: "/vms/v/console.log".into(),
            cgroup: None,
        }
    }

    fn shown(machine: &Machine, acceleration: Acceleration, khz: Option<u64>) -> String {
        let words = arguments(machine, acceleration, khz);
        let mut text = String::new();
        for word in words {
            let word = word.into_string().unwrap();
            text.push_str(if word.starts_with('-') && !text.is_empty() {
                "\n"
            } else {
                " "
            });
            text.push_str(&word);
        }
        text.trim().to_owned()
    }

    #[test]
    fn the_command_line_of_an_emulated_machine_on_mmio() {
        insta::assert_snapshot!(shown(
            &machine(Transport::Mmio),
            Acceleration::Tcg,
            Some(2_596_146)
        ));
    }

    #[test]
    fn the_command_line_of_a_kvm_machine_on_pci() {
        insta::assert_snapshot!(shown(
            &machine(Transport::Pci),
            Acceleration::Kvm,
            Some(2_596_146)
        ));
    }

    #[test]
    fn a_network_card_is_on_the_machines_transport_and_absent_without_a_line() {
        let (line, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let nic = Nic {
            line: Arc::new(line.into()),
            mac: [0x52, 0x54, 0x00, 0x01, 0x23, 0x0a],
            mtu: 65_520,
        };
        for (transport, card) in [
            (
                Transport::Mmio,
                "virtio-net-device,netdev=n0,mac=52:54:00:01:23:0a,host_mtu=65520",
            ),
            (
                Transport::Pci,
                "virtio-net-pci,netdev=n0,mac=52:54:00:01:23:0a,host_mtu=65520,romfile=",
            ),
        ] {
            let mut machine = machine(transport);
            assert!(!shown(&machine, Acceleration::Tcg, None).contains("netdev"));
            machine.nic = Some(nic.clone());
            let line = shown(&machine, Acceleration::Tcg, None);
            let end = format!("\n-netdev dgram,id=n0,local.type=fd,local.str=6\n-device {card}");
            assert!(line.ends_with(&end), "{line}");
        }
    }

    #[test]
    fn a_comma_in_a_path_is_not_the_end_of_it() {
        let mut machine = machine(Transport::Mmio);
        machine.drives[0].path = "/a,readonly=off/b".into();
        machine.kernel = "/k,1".into();
        let line = shown(&machine, Acceleration::Tcg, None);
        assert!(
            line.contains("readonly=on,file=/a,,readonly=off/b\n"),
            "{line}"
        );
        assert!(line.contains("-kernel /k,1\n"), "{line}");
        assert!(!line.contains("tsc_early_khz"));
    }
}
