//! Which stream the bytes of a yamux connection belong to: a value that is fed what was read, in any pieces.
//!
//! Only what the account needs is understood: a stream begins, a stream gets payload. Whether frames are legal is for the multiplexer to
//! say, which sees the same bytes next.

/// Version, type, flags (2 bytes), stream (4 bytes), length (4 bytes), big endian.
const HEADER: usize = 12;
const TYPE_DATA: u8 = 0;
const FLAG_SYN: u16 = 1;

/// What a piece of bytes held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The remote opens this stream.
    Opened(u32),
    /// So many bytes for this stream.
    Payload(u32, usize),
}

/// Where in a frame the last piece ended.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: [u8; HEADER],
    have: usize,
    stream: u32,
    /// Payload of the current frame that has not come.
    left: usize,
}

impl Frames {
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut on: impl FnMut(Seen)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                self.left -= count;
                bytes = &bytes[count..];
                on(Seen::Payload(self.stream, count));
                continue;
            }
            let count = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + count].copy_from_slice(&bytes[..count]);
            self.have += count;
            bytes = &bytes[count..];
            if self.have == HEADER {
                self.have = 0;
                self.on_header(&mut on);
            }
        }
    }

    fn on_header(&mut self, on: &mut impl FnMut(Seen)) {
        let [_, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = self.header;
        self.stream = u32::from_be_bytes([s0, s1, s2, s3]);
        if u16::from_be_bytes([f0, f1]) & FLAG_SYN != 0 && self.stream != 0 {
            on(Seen::Opened(self.stream));
        }
        // In other frames the field is a credit, a number or a code.
        if kind == TYPE_DATA {
            self.left = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
        let mut bytes = vec![0, kind];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(stream.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    /// All that was seen; payload of a stream in a row counts as one.
    fn seen<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Seen> {
        let mut frames = Frames::default();
        let mut all: Vec<Seen> = Vec::new();
        for piece in pieces {
            frames.feed(piece, |seen| match (all.last_mut(), seen) {
                (Some(Seen::Payload(last, sum)), Seen::Payload(stream, count))
                    if *last == stream =>
                {
                    *sum += count;
                }
                _ => all.push(seen),
            });
        }
        all
    }

    #[test]
    fn opens_and_payload_are_seen_and_other_numbers_are_no_lengths() {
        let bytes = [
            frame(1, 1, 2, 256_000),
            frame(0, 0, 2, 3),
            b"abc".to_vec(),
            frame(2, 1, 0, 77),
            frame(0, 1, 4, 1),
            b"x".to_vec(),
            frame(0, 4, 4, 0),
            frame(3, 0, 0, 1),
        ]
        .concat();
        assert_eq!(
            seen([&bytes[..]].into_iter()),
            [
                Seen::Opened(2),
                Seen::Payload(2, 3),
                Seen::Opened(4),
                Seen::Payload(4, 1),
            ]
        );
    }

    proptest! {
        /// Threat T7: any bytes, in any pieces.
        #[test]
        fn t7_pieces_make_no_difference_whatever_the_bytes(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            size in 1_usize..50,
        ) {
            prop_assert_eq!(seen([&bytes[..]].into_iter()), seen(bytes.chunks(size)));
        }
    }
}
