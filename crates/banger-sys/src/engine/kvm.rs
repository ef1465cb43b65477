//! Whether `/dev/kvm` is more than a file: it must make a VM and a vCPU.
//! Everything made here is closed again at once.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use libc::c_ulong;

const KVM_GET_API_VERSION: c_ulong = 0xae00;
const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
/// The only version there ever was.
const API_VERSION: i32 = 12;

/// How far a look at the device came.
#[derive(Debug)]
pub enum Refused {
    /// The device does not open.
    Open(io::Error),
    /// It is not the KVM that engines speak to.
    Version(i32),
    /// It makes no VM.
    Vm(io::Error),
    /// It makes a VM without a processor.
    Vcpu(io::Error),
}

/// Makes a VM with one vCPU at this device and drops both.
///
/// # Errors
/// [`Refused`] at the first step that the device refuses.
pub fn probe(device: &Path) -> Result<(), Refused> {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .map_err(Refused::Open)?;
    // SAFETY: KVM_GET_API_VERSION takes no argument and returns a number; on a
    // device that is not KVM it fails with ENOTTY.
    let version = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    if version != API_VERSION {
        return Err(Refused::Version(version));
    }
    let vm = make(&kvm, KVM_CREATE_VM).map_err(Refused::Vm)?;
    make(&vm, KVM_CREATE_VCPU).map_err(Refused::Vcpu)?;
    Ok(())
}

/// A KVM request with argument 0 that answers with a descriptor.
fn make(from: &impl AsRawFd, request: c_ulong) -> io::Result<OwnedFd> {
    // SAFETY: both requests take a plain number (machine type, vCPU id) and
    // write to no memory of ours.
    let fd = unsafe { libc::ioctl(from.as_raw_fd(), request, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
