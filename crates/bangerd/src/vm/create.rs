//! Making a VM: what is asked is checked, then the name is taken, and the rest
//! is an operation.

use banger_api::error::Code;
use banger_api::operation::{Operation, VmEvent};
use banger_api::vm::{VmCreateParams, VmSpec};
use banger_model::{Goal, KernelName, OpId, Phase, VmId, VmName, words};
use banger_store::{StoreError, operations, vms};

use super::events::Event;
use super::record::{Record, Vm};
use super::supervisor::Start;
use super::waiters::{Waiter, Want};
use super::{Vms, checks};
use crate::failure::Failure;
use crate::network;
use crate::operation::{Subject, now};

/// Tries to find two words that no VM is named yet.
const NAME_TRIES: usize = 32;

impl Vms {
    /// Makes a VM and, unless told otherwise, starts it. The name is taken
    /// when this returns.
    ///
    /// # Errors
    /// `bad_name bad_size bad_request unsupported not_found ambiguous
    /// already_exists no_space no_memory no_engine no_tool`; nothing was made
    /// then.
    pub(crate) async fn create(
        &self,
        params: VmCreateParams,
        op: &OpId,
    ) -> Result<Operation, Failure> {
        let house = &self.house;
        let name = params
            .name
            .as_deref()
            .map(VmName::parse)
            .transpose()
            .map_err(checks::bad_name)?;
        let spec = self.spec(&params)?;
        if let Some(kernel) = &params.kernel_name {
            KernelName::parse(kernel).map_err(checks::bad_name)?;
        }
        house
            .artifacts
            .known(params.image_name.as_deref(), params.kernel_name.as_deref())
            .await?;
        house.engine.usable(&spec.engine).await?;
        if network::has_gateway(&spec.network_mode) {
            house.gateways.usable()?;
        }
        checks::space(&*house.host, &house.settings.state_dir)?;
        let mut tries = 0;
        loop {
            let vm = new_vm(&params, &spec, name.as_ref(), op)?;
            let (vms, id) = (self.clone(), op.clone());
            let admitted = house.whole(async move { vms.admit_new(vm, &id).await });
            let Some(admitted) = admitted.await else {
                return Err(Failure::new(Code::Internal, "the daemon ends"));
            };
            match admitted {
                Err(StoreError::Taken(_)) if name.is_none() && tries < NAME_TRIES => tries += 1,
                Err(error) => return Err(checks::name_taken(error, "VM")),
                Ok(result) => return result,
            }
        }
    }

    /// Row, goal and operation in one transaction; then the supervisor.
    async fn admit_new(&self, vm: Vm, op: &OpId) -> Result<Result<Operation, Failure>, StoreError> {
        let house = &self.house;
        let subject = Subject {
            vm: Some((vm.id.to_string(), vm.name.clone())),
            image: None,
        };
        let handle = match house.operations.prepare("vm.create", subject, op) {
            Ok(handle) => handle,
            Err(failure) => return Ok(Err(failure)),
        };
        house.seams.pass("create.begun").await;
        let (row, op_row) = (vm.row(), handle.row());
        house
            .store
            .write(move |tx| {
                vms::insert(tx, &row)?;
                operations::put(tx, &op_row)
            })
            .await?;
        house.seams.pass("create.committed").await;
        house.operations.enlist(&handle);
        house.events.publish(Event::Vm(VmEvent {
            id: vm.id.to_string(),
            name: vm.name.clone(),
            from: None,
            to: Some(vm.state()),
            at: now(),
            reason: None,
        }));
        let want = if vm.goal == Goal::Up {
            Want::Up { after: 0 }
        } else {
            Want::Made
        };
        let operation = handle.operation();
        let auto_remove = vm.spec.auto_remove;
        let waiter = Waiter {
            op: handle.clone(),
            want,
        };
        let presence = house.supervise(
            vm,
            Start {
                run: None,
                waiters: vec![waiter],
            },
        );
        if auto_remove {
            handle.attach(presence.lease.clone());
        }
        Ok(Ok(operation))
    }

    fn spec(&self, params: &VmCreateParams) -> Result<VmSpec, Failure> {
        let (host, settings) = (&*self.house.host, &self.house.settings);
        let network_mode =
            checks::network(params.network_mode.as_deref().unwrap_or(&settings.network))?;
        let nat_enabled = checks::nat(&network_mode, params.nat_enabled)?;
        let spec = VmSpec {
            vcpu_count: params.vcpu_count.map_or(Ok(settings.vcpu), checks::vcpus)?,
            memory_mib: params
                .memory_mib
                .map_or(Ok(settings.memory_mib), |mib| checks::memory(mib, host))?,
            system_overlay_size_bytes: params
                .system_overlay_size
                .as_deref()
                .map_or(Ok(settings.overlay_bytes), |size| {
                    checks::disk("system overlay", size)
                })?,
            work_disk_size_bytes: params
                .work_disk_size
                .as_deref()
                .map_or(Ok(settings.disk_bytes), |size| {
                    checks::disk("work disk", size)
                })?,
            nat_enabled,
            network_mode,
            engine: checks::engine(params.engine.as_deref().unwrap_or(&settings.engine))?,
            kernel_name: params.kernel_name.clone(),
            auto_remove: params.auto_remove,
        };
        let available = host.memory()?.0 >> 20;
        if !params.no_start && spec.memory_mib > available {
            let message = format!("{} MiB asked, {available} MiB available", spec.memory_mib);
            return Err(Failure::new(Code::NoMemory, message).hint("stop a VM, or --memory"));
        }
        Ok(spec)
    }
}

fn new_vm(
    params: &VmCreateParams,
    spec: &VmSpec,
    name: Option<&VmName>,
    op: &OpId,
) -> Result<Vm, Failure> {
    let mut random = [0; 40];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::internal("the host has no random numbers", &error))?;
    let (id, word) = random.split_first_chunk::<32>().expect("40 bytes");
    let word = u64::from_ne_bytes(word.try_into().expect("8 bytes"));
    let at = now();
    Ok(Vm {
        id: VmId::from_random(*id),
        name: name.map_or_else(|| words::two_words(word), ToString::to_string),
        phase: Phase::Stopped,
        goal: if params.no_start {
            Goal::Down
        } else {
            Goal::Up
        },
        last_exit: None,
        spec: spec.clone(),
        record: Record {
            wanted_image: params.image_name.clone(),
            creating: Some(op.to_string()),
            main_follows: params.main_follows,
            last_touched_at: at.clone(),
            ..Record::default()
        },
        created_at: at.clone(),
        updated_at: at,
    })
}
