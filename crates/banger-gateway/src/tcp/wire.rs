//! What an endpoint takes for its network: one segment in, the line out, and
//! on the way the numbers that the guest knows.

use banger_wire::gateway::MTU;
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as Stamp;

use crate::checksum::Sum;
use crate::counters::Counters;
use crate::ipv4;
use crate::line::Line;

/// Flags of a segment.
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// Where segments go.
pub(crate) struct Outlet<'a> {
    pub(crate) line: &'a mut Line,
    pub(crate) counters: &'a mut Counters,
}

/// The numbers of segments on the line.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// To be added to smoltcp's, modulo 2^32.
    pub(crate) shift: u32,
    /// Of our SYN, as smoltcp has it.
    pub(crate) first: Option<u32>,
    /// The last acknowledgement that was sent.
    pub(crate) acknowledged: u32,
    /// The guest's, as it stood in its last segment.
    pub(crate) window: u16,
}

/// What smoltcp takes for its device: one packet in, the line out.
pub(crate) struct Wire<'a> {
    pub(crate) packet: Option<&'a [u8]>,
    /// Without one, what is sent stays here.
    pub(crate) outlet: Option<Outlet<'a>>,
    pub(crate) numbers: &'a mut Numbers,
}

impl<'a> Wire<'a> {
    pub(crate) fn to_nobody(numbers: &'a mut Numbers) -> Self {
        Self {
            packet: None,
            outlet: None,
            numbers,
        }
    }

    fn out(&mut self) -> Out<'_> {
        Out {
            outlet: self.outlet.as_mut().map(|outlet| Outlet {
                line: &mut *outlet.line,
                counters: &mut *outlet.counters,
            }),
            numbers: &mut *self.numbers,
        }
    }
}

pub(crate) struct In<'a>(&'a [u8]);

pub(crate) struct Out<'a> {
    outlet: Option<Outlet<'a>>,
    numbers: &'a mut Numbers,
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = In<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Out<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Stamp) -> Option<(In<'_>, Out<'_>)> {
        let packet = self.packet.take()?;
        Some((In(packet), self.out()))
    }

    fn transmit(&mut self, _: Stamp) -> Option<Out<'_>> {
        let out = self.out();
        let room = out
            .outlet
            .as_ref()
            .is_none_or(|outlet| outlet.line.has_room());
        room.then_some(out)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        // The guest's are not looked at, see `segment`; ours are summed up
        // after the numbers have been shifted.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

impl RxToken for In<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let Self { outlet, numbers } = self;
        let fill = |packet: &mut [u8]| {
            let result = write(packet);
            numbers.put_on(packet);
            result
        };
        match outlet {
            Some(Outlet { line, counters }) => line.packet(counters, length, fill),
            None => fill(&mut vec![0; length]),
        }
    }
}

impl Numbers {
    /// Gives a segment of the guest the numbers that smoltcp has.
    pub(crate) fn take_off(&mut self, tcp: &mut [u8]) {
        let flags = tcp[13];
        if flags & ACK != 0 {
            let ack = word(tcp, 8).wrapping_sub(self.shift);
            tcp[8..12].copy_from_slice(&ack.to_be_bytes());
            if flags & (SYN | RST) == 0 {
                self.window = u16::from_be_bytes([tcp[14], tcp[15]]);
            }
        }
    }

    /// Gives a segment the numbers of the line, and its checksum.
    fn put_on(&mut self, packet: &mut [u8]) {
        let Some((header, tcp)) = packet.split_first_chunk_mut::<{ ipv4::HEADER }>() else {
            return;
        };
        let (sequence, flags) = (word(tcp, 4), tcp[13]);
        if flags & SYN != 0 {
            self.first = Some(sequence);
        }
        if flags & ACK != 0 {
            self.acknowledged = word(tcp, 8);
        }
        let sequence = sequence.wrapping_add(self.shift);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[16..18].fill(0);
        let length = tcp.len() as u16;
        let sum = Sum::default()
            .with(&header[12..20])
            .with(&[0, ipv4::TCP])
            .with(&length.to_be_bytes());
        let sum = sum.with(tcp).finish();
        tcp[16..18].copy_from_slice(&sum);
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
