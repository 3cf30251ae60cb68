//! Runs: small frames that hold nothing but messages, read many at a time (specs/gossip.md §3).
//!
//! Most of what a busy node reads are copies, one to a frame, and the frame costs more than the copy in it: a place in memory with a count
//! of its owners, a look at the clock, a lock. So such frames are walked where they lie, at the front of a buffer, digested, and looked up
//! under one lock. Only what is new is copied out. Everything else, and whatever looks odd, is left to [`Reader::scan`].

use bytes::Bytes;

use super::message;
use super::rpc::{Piece, Reader, Received};
use crate::seen::{Mark, Seen, Sight, Source, State};

/// Messages of a run, with those of the frame in which this is reached. As many are looked up under one lock.
const RUN: usize = 128;
/// Longest frame of a run.
const SMALL: usize = 16 * 1024;
/// The header of a message in an RPC: field 2, bytes.
const MESSAGE: u8 = 2 << 3 | 2;

impl Reader {
    /// Walks the run at the front of `buffer`, which begins with the length of a frame, and digests its messages. Returns how many there
    /// are; 0 if what comes first is incomplete, large, odd, or holds something else.
    pub fn scan_run(&mut self, buffer: &[u8]) -> usize {
        self.pieces.clear();
        self.received = Received::default();
        let mut at = 0;
        while self.pieces.len() < RUN {
            let before = self.pieces.len();
            let Some(end) = self.scan_small(buffer, at) else {
                self.pieces.truncate(before);
                break;
            };
            at = end;
        }
        self.pieces.len()
    }

    /// The frame at `at`, if it is one for a run. Returns where it ends.
    #[inline]
    fn scan_small(&mut self, buffer: &[u8], at: usize) -> Option<usize> {
        let (len, header) = short(buffer.get(at..)?)?;
        let mut at = at + header;
        let end = at + len;
        // An empty frame has no message that could stand for it.
        if len == 0 || len > SMALL || end > buffer.len() {
            return None;
        }
        while at < end {
            let (key, rest) = buffer[at..end].split_first()?;
            let (len, header) = short(rest)?;
            let start = at + 1 + header;
            let value = buffer[..end].get(start..start + len)?;
            if *key != MESSAGE {
                return None;
            }
            let next = start + len;
            self.pieces.push(Piece {
                at: at as u32,
                start: start as u32,
                end: next as u32,
                minimal: true,
                last: next == end,
                digest: self.digester.digest(value),
            });
            at = next;
        }
        Some(end)
    }

    /// Looks the messages of the run up, as [`sight`](Self::sight) does. Ends early behind a frame with something new after which no more
    /// of `from` may wait ([`Seen::room`]). Returns the bytes of the buffer that were used.
    pub fn sight_run(&mut self, seen: &mut Seen, from: Source, now: crate::Time) -> usize {
        let (received, mut used, mut new) = (&mut self.received, 0, 0);
        let (mut frame, mut plain) = (0, true);
        for i in 0..self.pieces.len() {
            let piece = self.pieces[i];
            frame += piece.end - piece.at;
            match seen.sight(piece.digest, from, now) {
                Sight::Known(State::Invalid) => {
                    received.known.invalid += 1;
                    plain = false;
                }
                Sight::Known(_) => received.known.duplicates += 1,
                Sight::New(_) => {
                    self.pieces[new] = piece;
                    new += 1;
                    plain = false;
                }
                Sight::Refused(_) => {
                    received.known.shed += 1;
                    plain = false;
                }
            }
            if piece.last {
                used = piece.end as usize;
                if !plain {
                    received.bytes += frame as usize;
                    if seen.room(from) == 0 {
                        break;
                    }
                }
                (frame, plain) = (0, true);
            }
        }
        self.pieces.truncate(new);
        used
    }

    /// Parses what is new in the run, each message in memory of its own, and hands everything over.
    pub fn finish_run(&mut self, buffer: &[u8]) -> Received {
        let mut received = std::mem::take(&mut self.received);
        for piece in self.pieces.drain(..) {
            let mark = Mark::new(piece.digest);
            let field = Bytes::copy_from_slice(&buffer[piece.at as usize..piece.end as usize]);
            match message::parse(field, (piece.start - piece.at) as usize) {
                Ok(message) => received.candidates.push(super::Candidate { mark, message }),
                Err(refused) => received.refused.push((mark, refused)),
            }
        }
        self.shrink();
        received
    }
}

/// A length of up to three bytes at the beginning of `bytes`, written as short as possible, and how many bytes it has.
#[inline]
fn short(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes {
        [a, ..] if a < 0x80 => Some((usize::from(a), 1)),
        [a, b, ..] if b < 0x80 && b > 0 => Some((usize::from(a & 0x7f) | usize::from(b) << 7, 2)),
        [a, b, c, ..] if b >= 0x80 && c < 0x80 && c > 0 => {
            let low = usize::from(a & 0x7f) | usize::from(b & 0x7f) << 7;
            Some((low | usize::from(c) << 14, 3))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pb;

    #[test]
    fn short_lengths_are_the_minimal_ones() {
        for value in [0, 1, 127, 128, 300, 16_383, 16_384, 70_000, 2_097_151] {
            let mut bytes = Vec::new();
            pb::put_varint(&mut bytes, value);
            let len = bytes.len();
            bytes.push(0xff);
            assert_eq!(short(&bytes), Some((value as usize, len)), "{value}");
            if len > 1 {
                assert_eq!(short(&bytes[..len - 1]), None, "{value}");
            }
        }
        for odd in [
            &[][..],
            &[0x80, 0],
            &[0x80, 0x80, 0],
            &[0x80, 0x80, 0x80, 1],
        ] {
            assert_eq!(short(odd), None, "{odd:?}");
        }
    }
}
