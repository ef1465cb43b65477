//! Answers of a kernel, and what could pass for one.

use super::*;

const TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

fn route_body(kind: u8, flags: u32, to: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![AF_INET, 32, 0, 0, 254, 0, 0, kind];
    body.extend(flags.to_ne_bytes());
    // Another attribute first, of a length that is padded.
    body.extend([5_u8, 0, 99, 0, 1, 0, 0, 0]);
    body.extend(8_u16.to_ne_bytes());
    body.extend(RTA_DST.to_ne_bytes());
    body.extend(to.octets());
    body
}

#[test]
fn only_a_unicast_route_without_a_local_flag_leads_out() {
    let read = |kind, flags| read_route(&route_body(kind, flags, TO), TO);
    assert_eq!(read(1, 0x200), Ok(Route::Out));
    for kind in (0..=255).filter(|kind| *kind != 1) {
        assert_eq!(read(kind, 0x200), Ok(Route::NotOut), "type {kind}");
    }
    for flag in [28, 29, 30, 31] {
        assert_eq!(read(1, 1 << flag), Ok(Route::NotOut), "bit {flag}");
    }
}

#[test]
fn an_answer_about_something_else_is_no_answer() {
    let other = Ipv4Addr::new(192, 0, 2, 8);
    assert_eq!(read_route(&route_body(1, 0, other), TO), Err(Unknown));
    let good = route_body(1, 0, TO);
    for (at, value) in [(0, 10), (1, 24), (22, 2)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(read_route(&bad, TO), Err(Unknown), "byte {at}");
    }
    for length in 0..good.len() {
        assert_eq!(read_route(&good[..length], TO), Err(Unknown), "{length}");
    }
}

#[test]
fn errors_that_no_route_gives_are_no_answer() {
    let read = |code: i32| read_error(&code.to_ne_bytes());
    for code in [-101, -113, -13, -22] {
        assert_eq!(read(code), Ok(Route::NotOut), "{code}");
    }
    for code in [0, -1, -12, -16, -95, 101, i32::MIN] {
        assert_eq!(read(code), Err(Unknown), "{code}");
    }
    assert_eq!(read_error(&[]), Err(Unknown));
}

#[test]
fn a_packet_is_cut_into_messages_and_lies_end_it() {
    let message = |length: u32, body: &[u8]| {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(RTM_NEWADDR.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    };
    let mut packet = message(17, &[1, 0, 0, 0]);
    packet.extend(message(16, &[]));
    let bodies = |packet: &[u8]| -> Vec<Option<usize>> {
        Messages(packet)
            .map(|message| message.ok().map(|message| message.body.len()))
            .collect()
    };
    assert_eq!(bodies(&packet), [Some(1), Some(0)]);
    for length in [0, 15, 18, u32::MAX] {
        let mut packet = message(16, &[]);
        packet.extend(message(length, &[0]));
        assert_eq!(bodies(&packet), [Some(0), None], "length {length}");
    }
    assert_eq!(bodies(&[16, 0, 0]), [None]);
}

#[test]
fn of_a_line_between_two_the_hosts_side_counts() {
    let attribute = |kind: u16, last: u8| {
        let mut bytes = 8_u16.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([10, 9, 9, last]);
        bytes
    };
    let head = [AF_INET, 32, 0, 0, 1, 0, 0, 0];
    let body = [
        &head[..],
        &attribute(IFA_ADDRESS, 2),
        &attribute(IFA_LOCAL, 1),
    ]
    .concat();
    let host = Ipv4Addr::new(10, 9, 9, 1);
    assert_eq!(read_address(&body), Ok(Some(host)));
    let body = [&head[..], &attribute(IFA_ADDRESS, 1)].concat();
    assert_eq!(read_address(&body), Ok(Some(host)));
    assert_eq!(read_address(&head), Err(Unknown));
    assert_eq!(read_address(&[10, 0, 0, 0, 0, 0, 0, 0]), Ok(None));
}

#[test]
fn the_real_kernel_answers_question_after_question() {
    let mut kernel = Kernel::open().unwrap();
    assert_eq!(kernel.route(Ipv4Addr::LOCALHOST), Ok(Route::NotOut));
    let all = kernel.addresses().unwrap();
    for own in all {
        assert_eq!(kernel.route(own), Ok(Route::NotOut), "{own}");
    }
    // An answer that nobody read does not become the next one's.
    let question = [AF_INET, 0, 0, 0, 0, 0, 0, 0];
    kernel
        .ask(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &question)
        .unwrap();
    assert_eq!(kernel.route(Ipv4Addr::LOCALHOST), Ok(Route::NotOut));
}
