//! Both sides of the resync, fed with anything.
#![no_main]

use banger_wire::hello::{Answer, Expect, Found, NONCE_LEN, Scanner, VERSION};
use libfuzzer_sys::fuzz_target;

fn scan<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<[u8; NONCE_LEN]>) {
    let (mut scanner, mut bytes, mut opened) = (Scanner::new(), Vec::new(), Vec::new());
    for found in pieces.flat_map(|piece| scanner.push(piece)) {
        match found {
            Found::Data(data) => bytes.extend(data),
            Found::Opened(nonce) => opened.push(nonce),
        }
    }
    (bytes, opened)
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(scan(std::iter::once(data)), scan(data.chunks(5)));
    // The daemon finds its answer after anything that does not hold it.
    let answer = Answer { version: VERSION, boot_id: [1; 16], nonce: [0xa5; 16] };
    let mut line = data.to_vec();
    line.extend(answer.encode());
    let mut expect = Expect::answer_to(answer.nonce);
    let found = line.chunks(7).find_map(|piece| expect.push(piece));
    assert!(found.is_some());
});
