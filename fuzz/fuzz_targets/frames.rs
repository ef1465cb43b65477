//! Frames from a guest or a client, in pieces of any size.
#![no_main]

use banger_wire::frames::{Decoder, Frame, MAX_PAYLOAD};
use libfuzzer_sys::fuzz_target;

/// Every frame up to the first error.
fn read(pieces: impl Iterator<Item = impl AsRef<[u8]>>) -> (Vec<Frame>, bool) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for piece in pieces {
        decoder.push(piece.as_ref());
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

fuzz_target!(|data: &[u8]| {
    let whole = read(std::iter::once(data));
    assert_eq!(whole, read(data.chunks(3)), "pieces change nothing");
    for frame in &whole.0 {
        assert!(frame.payload.len() <= MAX_PAYLOAD);
        let _ = frame.control();
    }
});
