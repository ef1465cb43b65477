//! `create`: a machine whose disks survive. Its flags are also those of `run`.

use banger_api::endpoint::VmCreate;
use banger_api::vm::VmCreateParams;
use clap::Args;

use crate::client::start::Place;
use crate::complete;
use crate::failure::Failure;
use crate::follow;
use crate::interrupt::guarded;
use crate::show::progress::Progress;
use crate::show::size::{parse_disk, parse_memory};

/// Flags that say what the machine is.
#[derive(Debug, Args)]
pub(crate) struct MachineFlags {
    /// Name, and hostname of the guest [default: two random words]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Image by name or id
    #[arg(long, value_name = "IMAGE", add = complete::images())]
    image: Option<String>,
    /// Kernel by name
    #[arg(long, value_name = "KERNEL", add = complete::kernels())]
    kernel: Option<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=32), allow_negative_numbers = true)]
    vcpu: Option<i64>,
    /// Memory, like 2G
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<i64>,
    /// Size of the work disk on /root, like 8G
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    disk_size: Option<String>,
    /// Size of the disk for changes of the root filesystem
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    system_overlay_size: Option<String>,
    /// Let the guest reach the outside (user always does)
    #[arg(long, conflicts_with = "no_nat")]
    nat: bool,
    /// Keep the guest from the outside (none always does)
    #[arg(long)]
    no_nat: bool,
    /// Way out of the guest [default: that of the config, else user]
    #[arg(long, value_name = "MODE", value_parser = ["auto", "user", "bridge", "none"])]
    network: Option<String>,
    /// Engine that runs it
    #[arg(long, value_name = "ENGINE", value_parser = ["auto", "firecracker", "qemu"])]
    engine: Option<String>,
}

impl MachineFlags {
    /// The request for such a machine.
    pub(crate) fn params(&self) -> VmCreateParams {
        VmCreateParams {
            name: self.name.clone(),
            image_name: self.image.clone(),
            vcpu_count: self.vcpu,
            memory_mib: self.memory,
            system_overlay_size: self.system_overlay_size.clone(),
            work_disk_size: self.disk_size.clone(),
            nat_enabled: nat(self.nat, self.no_nat),
            kernel_name: self.kernel.clone(),
            engine: self.engine.clone(),
            network_mode: self.network.clone(),
            ..VmCreateParams::default()
        }
    }
}

/// What `--nat` and `--no-nat` say together.
pub(crate) fn nat(yes: bool, no: bool) -> Option<bool> {
    (yes || no).then_some(yes)
}

/// Create a VM and start it
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  banger create --name box --memory 4G --disk-size 20G
  banger create --name later --no-start
  banger exec box -- uname -r")]
pub(crate) struct Create {
    #[command(flatten)]
    machine: MachineFlags,
    /// Leave it stopped
    #[arg(long)]
    no_start: bool,
    /// Print its id instead of its name
    #[arg(short, long)]
    quiet: bool,
}

impl Create {
    /// Creates, follows, prints the name.
    pub(crate) async fn run(self, place: &Place) -> Result<u8, Failure> {
        let params = VmCreateParams {
            no_start: self.no_start,
            ..self.machine.params()
        };
        guarded(async |cancel| {
            let client = place.reach().await?;
            let begun = client.call::<VmCreate>(&[], &params).await?.operation;
            let mut progress = Progress::new();
            let done = follow::success(place, &client, &begun.id, &mut progress, cancel).await?;
            print_new(&done, self.quiet)
        })
        .await
    }
}

/// Prints the name, or the whole id, of the VM that an operation made.
pub(crate) fn print_new(
    operation: &banger_api::operation::Operation,
    quiet: bool,
) -> Result<u8, Failure> {
    let record = operation.vm.as_ref();
    let wanted = if quiet {
        operation
            .vm_id
            .as_deref()
            .or(record.map(|vm| vm.id.as_str()))
    } else {
        operation
            .vm_name
            .as_deref()
            .or(record.map(|vm| vm.name.as_str()))
    };
    crate::show::line(&crate::show::escape(wanted.unwrap_or("")))?;
    Ok(0)
}
