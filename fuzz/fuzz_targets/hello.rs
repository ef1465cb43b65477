//! Both sides of the resync, fed with anything.
#![no_main]

use banger_wire::hello::{Answer, Expect, Found, NONCE_LEN, Scanner, VERSION};
use libfuzzer_sys::fuzz_target;

/// The data of each connection.
fn scan<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<([u8; NONCE_LEN], Vec<u8>)> {
    let (mut scanner, mut connections) = (Scanner::new(), Vec::new());
    for found in pieces.flat_map(|piece| scanner.push(piece)) {
        match found {
            Found::Data(data) => {
                let (_, bytes): &mut ([u8; NONCE_LEN], Vec<u8>) =
                    connections.last_mut().expect("no data before the first hello");
                bytes.extend(data);
            }
            Found::Opened(nonce) => connections.push((nonce, Vec::new())),
        }
    }
    connections
}

fuzz_target!(|data: &[u8]| {
    let (whole, split) = (scan(std::iter::once(data)), scan(data.chunks(5)));
    assert_eq!(whole.len(), split.len());
    for ((nonce, bytes), (same, parts)) in whole.iter().zip(&split) {
        assert_eq!(nonce, same);
        // The beginning of a token that ends a connection may have been given to it.
        let more = parts.strip_prefix(&bytes[..]).expect("all of it");
        assert!(more.len() < 8 && data.starts_with(more));
    }
    // The daemon finds its answer after anything that does not hold it.
    let answer = Answer { version: VERSION, boot_id: [1; 16], nonce: [0xa5; 16] };
    let mut line = data.to_vec();
    line.extend(answer.encode());
    let mut expect = Expect::answer_to(answer.nonce);
    let found = line.chunks(7).find_map(|piece| expect.push(piece));
    assert!(found.is_some());
});
