//! What the command line needs of the kernel that std does not offer: a child
//! in a session of its own that inherits one more descriptor.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::FdFlags;

/// Makes the child of `command` the leader of a new session, without a
/// controlling terminal, and lets it inherit `keep` under the number returned.
///
/// `keep` stays open in this process as long as `command` lives.
pub fn start_in_own_session(command: &mut Command, keep: OwnedFd) -> i32 {
    let number = keep.as_raw_fd();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed.
    // The closure makes two system calls and allocates nothing; `keep` is
    // owned by it, so the descriptor is open whenever it runs.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::io::fcntl_setfd(&keep, FdFlags::empty())?;
            Ok(())
        });
    }
    number
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_child_leads_its_own_session_and_writes_to_the_descriptor_it_was_given() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new("sh");
        let number = start_in_own_session(&mut command, writer);
        command.arg("-c").arg(format!(
            "read -r _ _ _ _ _ session _ < /proc/$$/stat; [ $session = $$ ] && echo leader >/proc/self/fd/{number}"
        ));
        let status = command.status().unwrap();
        drop(command);
        let mut said = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut said)
            .unwrap();
        assert!(status.success());
        assert_eq!(said, "leader\n");
    }
}
